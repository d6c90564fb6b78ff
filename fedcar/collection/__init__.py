"""Documents, questions and judgements: read, checked, split, imported.

What other folders take:
    asked.Counts: What became of the rows and files that were read.
    collection.Collection: Documents, queries by id, and judgements as {split: {query id: {document id: score}}}.
    collection.Document: One document; its row in the head has the document's position in the collection.
    collection.Judged: The judged queries of one split in the order of its file; relevant[i] is {document id:
        score}, with zeros.
    collection.Query: One question; `split` counts only where it is unanswerable, otherwise its judgements say the
        split.
    collection.SPLITS: the names of the three splits.
    collection.check_free: Refuse an output folder that exists, unless it is an empty folder.
    collection.document_line: The document as a line of corpus.jsonl, without its end.
    collection.normalised: Return the text by which two queries count as equal: stripped, case folded, white space
        collapsed.
    columns.Columns: Which column is which, where their names do not say so.
    demo.FOLDER: where the packaged collection lies.
    importing.PUBLIC_IDS: how the ids of a file of public questions begin.
    importing.imported: Make a collection of a file or folder, write it to `out` as a BEIR folder, and return it
        with what was counted.
    importing.imported_documents: The documents of whatever `imported` takes, without questions; nothing is written.
    importing.with_public_questions: The collection with the questions of a file as its dev split, whatever split
        they name; with `dev` beside it.
    languages.ENGLISH: the code of English.
    languages.languages: All languages by their code (ISO 639-1).
    languages.name_of: The language's English name.
    languages.other_language: The language of one text, where it is plainly not this one; a Japanese text may have
        no kana.
    languages.recognised: The language of most of the texts, which depends on these texts and their order alone.
    lines.check_identifier: Return the id; refuse an empty one and one that cannot stand in a tab-separated line.
    lines.check_text: Return the text; refuse a NUL and half of a surrogate pair, which no file and no tokenizer
        takes.
    partition.PARTS: in what way a run's parts were made, as its folder says.
    partition.Partition: rows of questions by client.
    partition.UNNAMED: the client of questions that name none.
    partition.parse: The ALPHA of `dirichlet:ALPHA`, None for the other kinds; refuses what is none of them.
    partition.partition: The rows of `judged` by client name; every question has one client, every client at least
        one question.
    partition.partition_by_question: The rows of `judged` by client name, as differential privacy needs it; a client
        may be left without any.
    persons.partition_of_persons: As `partition_by_question`, with all questions of a person at the client of the
        person's first one.
    persons.persons_of: The person of each question: what stands in this field, a word or a whole number.
    pseudo_queries.PseudoQueries: n texts, the document each stands for, and how much of a real question it counts:
        `weights` (n,).
    pseudo_queries.pseudo_queries: Each document's title and a seeded choice of its sentences (the inverse cloze
        task: Lee et al. 2019).
    question_files.read_questions: The questions in the order of the file: the lines of a text, or "text" (and "id")
        of the objects of JSON lines.
    splits.split_for_selection: Training and selection questions: train and dev; without dev a seeded tenth of train
        chooses instead.
    splits.subset: The judged queries that are kept.
    splits.unknown: The dev questions whose text does not stand in train: those would reward memory.
    splits.warn_of_narrow_data: One warning where there is next to nothing to learn.
    wording.AS_BEFORE: the wording of collections in English, and of those before languages were told.
    wording.Wording: How texts are taken apart into words, for one collection: questions as its documents are.
    words.sentences: Where the sentences begin and end: at least one, in order, without overlap.
    words.word_count: How many words a text has; in scripts without spaces two characters count as one.
"""

from fedcar.collection.collection import Collection, Document, Judged, Query

__all__ = ["Collection", "Document", "Judged", "Query"]
