"""What every folder needs and none owns: files, folders, tensors, vectors, progress, history.

What other folders take:
    files.check_file: OSError, before long work, where `whole_file` could not begin; leaves nothing behind.
    files.default_cache: The user's cache folder (XDG_CACHE_HOME, else ~/.cache) / fedcar.
    files.encoders_folder: Where in the user's cache is kept what was made of encoders.
    files.has_home: Whether the system says where this user's home is; other libraries take "~" for a folder's name
        if not.
    files.lock_of: Hold the lock of a file, waiting so long for it; False where it is still held elsewhere.
    files.remove_tree: Remove a folder as far as it can be removed.
    files.replace_file: A crash leaves the former file or the new one.
    files.replace_json: As `write_json`; a crash leaves the former file or the new one.
    files.user_folder: The user's folder of what outlasts a cache: "state" (XDG_STATE_HOME, else ~/.local/state) or
        "data", / fedcar.
    files.whole_file: A text file to write that takes its name when it is whole: an error leaves what was there
        before.
    files.write_json: Write a JSON file, indented and in UTF-8.
    files.written_whole: A place to write to that takes the file's name in one step: who looks finds the former file
        or all of this.
    folders.ANYTHING: What `replaces` is where any folder may be replaced.
    folders.RESTORE: The way out that an error about a changed folder names.
    folders.ReplacedError: Somebody else has replaced the folder meanwhile.
    folders.check_folder: Refuse a folder that is not a sealed fedcar folder of this kind, or of which any file has
        changed.
    folders.check_target: Refuse, before long work, a target that could not be written after it; leaves nothing
        behind.
    folders.kind_of: Which kind of fedcar folder this is, before anything in it is checked; None where it is none.
    folders.made_once: A folder of the cache; where it is not whole, `write` fills one beside it whose files are
        then moved here.
    folders.new_folder: A folder to fill that takes the place of `target`, missing or empty, when it is whole; an
        error leaves nothing.
    folders.opened_folder: A sealed folder to read from: what was checked is what is read.
    folders.remove_folder: Remove a folder that fedcar wrote, if it is there.
    folders.remove_unfinished: Remove what a process that was killed was making in this folder, see `made_once`.
    folders.seal_of: What changes whenever the folder is written anew with other content.
    folders.write_folder: Let `write` fill a temporary folder, seal it with hashes and put it in the place of
        `target` in one step.
    history.History: A list of records, one an epoch or a round, each a flat mapping of plain values; records are
        only ever added.
    measure.CLOCKS: what seconds are measured with, by name: of the wall or of the processor.
    measure.Clock: Seconds by step: `lap` books the time since the last lap under a name.
    measure.OtherWork: What everybody but this process takes of the machine's processors from now on.
    measure.free_memory: Bytes of memory that are free or can be freed at once; None where the system does not tell.
    measure.multiplies_bfloat16: Whether the processor, or the GPU where torch finds one, multiplies bfloat16;
        elsewhere it is slower, not faster.
    measure.peak_memory_mb: The largest resident memory of this process so far, in MB; None where the system does
        not tell.
    measure.processor: The processor's name, as far as the system tells.
    progress.Console: Progress on stderr, so that stdout holds results alone.
    progress.Silent: Says nothing: the default of the Python interface.
    tensors.mapped_tensors: The tensors of a safetensors file, mapped into memory: each is read from the disk as far
        as it is used.
    tensors.read_tensors: The tensors of a safetensors file; nothing else is read, a pickle least of all.
    vectors.top_k: Scores (n, documents) -> the k best columns of each row, best first; of equal scores the lower
        column first.
    vectors.unit: Each row divided by its length; a row of zeros stays.
"""
