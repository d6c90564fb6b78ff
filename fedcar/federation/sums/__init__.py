"""Sums that add up over clients: ridge, mixture.

What other folders take:
    forms.PSEUDO: the names of the sums over pseudo-queries as they travel.
    forms.check_client: ValueError where statistics cannot be those of the questions a client enrolled with: no one
        can be too loud.
    forms.damaged: Whose gram is no sum of squares, where that of all could not be solved; see there.
    forms.sums_from: What `tensors_of` was given; ValueError, with the reason, for what is no sum of that many
        questions' features.
    forms.tensors_of: Sums as they travel: of the gram the upper triangle, of the cross terms the columns that are
        not 0.
    forms.words_from: Counts of words out of what `words_of` made; ValueError for what is none.
    forms.words_of: Counts of words as they travel.
    harm.SumsJudge: Questions that choose, as ridge sees them.
    mixture.MixtureTerms: A client's questions that say something; they stay with it.
    mixture.PooledSums: What a client sends in a round: loss, gradient (F,) and Hessian (F, F) summed over its
        questions.
    mixture.Spread: How far a client's features lie apart, by which the pull of the prior is scaled; asked for
        first.
    mixture.SpreadSums: Squared distances as `spread_sums` gives them, how many questions say something, how much
        they count.
    mixture.SumsAt: A client's sums at the weights (F,), in float64.
    mixture.federated_mixture: The weights of `fedcar.training.mixture.fit_mixture` on all clients' questions
        together, and the rounds it took.
    ridge.MeasuredSums: A client's statistics and words, and the CPU seconds they took; None where nobody measured.
    ridge.OfLeftOut: What the mixture asks, asked of sampled questions that are left out; document folds count by
        `share`.
    ridge.QuestionSums: A client's statistics and words; asked for first.
    ridge.RidgeMember: One client in the round of `ridge`: its questions, and what it heard of everybody's sums.
    ridge.RightByStrength: How many sampled questions are right at each strength when each is left out, once
        everybody's sums are heard.
    ridge.RightCounts: How many of a client's sampled questions are right on document folds, and of its held-out
        ones, of how many.
    ridge.RightOnFolds: How many questions are right with these weights (F,).
    ridge.Solution: Ridge at a strength; only the strength travels, as a device solves for itself.
    ridge.feature_map: The same on every client: nothing in it comes from a question.
    ridge.federated_ridge: `fedcar.training.ridge.fit_ridge` with the questions on clients, whose sums were gathered
        (see `gather`).
    ridge.gather: Ask every client for its sums, once for all candidates; who gives none is not asked again.
    ridge.rows_of: Where each document stands among the rows.
"""
