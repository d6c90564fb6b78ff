"""Sums that add up over clients: ridge, mixture.

What other folders take:
    forms.PSEUDO: the names of the sums over pseudo-queries as they travel.
    forms.check_client: ValueError where statistics cannot be those of the questions a client enrolled with: no one
        can be too loud.
    forms.sums_from: What `tensors_of` was given; ValueError, with the reason, for what is no sum of that many
        questions' features.
    forms.tensors_of: Sums as they travel: of the gram the upper triangle, of the cross terms the columns that are
        not 0.
    forms.words_from: Counts of words out of what `words_of` made; ValueError for what is none.
    forms.words_of: Counts of words as they travel.
    mixture.MixtureTerms: A client's questions that say something; they stay with it.
    mixture.PooledSums: What a client sends in a round: loss, gradient (F,) and Hessian (F, F) summed over its
        questions.
    mixture.Spread: How far a client's features lie apart, by which the pull of the prior is scaled; asked for
        first.
    mixture.SpreadSums: Squared distances as `spread_sums` gives them, how many questions say something, how much
        they count together.
    mixture.SumsAt: A client's sums at the weights (F,), in float64.
    mixture.federated_mixture: The weights of `fedcar.training.mixture.fit_mixture` on all clients' questions
        together, and the rounds it took.
    mixture.loss_sums: Loss, gradient and Hessian of a client's questions at the weights (F,).
    mixture.spread_sums: (F + 1,): squared distances of the features from their question's mean, summed, and how
        many there are.
    ridge.LocalRidge: Clients of this process in the round of `ridge`.
    ridge.RidgeClients: The clients' side of the round, in this process (`LocalRidge`) or behind a network; what
        they answer is summed.
    ridge.RidgeMember: One client in the round of `ridge`: its questions, and what it heard of everybody's sums.
    ridge.feature_map: The same on every client: nothing in it comes from a question.
    ridge.federated_ridge: `fedcar.training.ridge.fit_ridge` with the questions on clients.
    ridge.share_of_right: Of clients' right answers and questions; a client that says more than all were right is
        left out.
"""
