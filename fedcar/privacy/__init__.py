"""Differential privacy: clipping, noise, an accountant, a ledger, a statement, an attack and an audit.

Imports nothing from the rest of fedcar. `clip` is the only module that needs torch; it is not imported here.

What other folders take:
    accountant.epsilon_of: Return the epsilon that all these releases together give away at this delta; infinite
        where noise does not count.
    accountant.noise_multiplier: Return the noise multiplier with which `template` fits the budget, after what was
        released already.
    attack.Attack: A score for each candidate (higher: more likely there), and the candidates called present.
    attack.class_sum_questions: Which of some candidate questions stand behind class sums: the best cosine of each
        with any document's sum.
    attack.nearest_texts: Return the candidate texts whose embeddings (texts, d) point most along this direction
        (d,); their cosines.
    attack.quality: Precision and recall of what was recovered, AUC of the scores, over these candidates (default:
        all).
    attack.row_labels: Which documents had questions: their rows move towards the mean query, all others away from
        it.
    attack.row_space_tokens: Which tokens an adapter's update was made of: G = sum_t g_t x_t^T, so its row space is
        the span of the x_t.
    audit.Check: One finding: flagged where its p-value is below LEVEL.
    audit.canaries_agree_with_the_claim: Whether the guesses refute the epsilon of these releases, taken at the
        small delta at which a test can be sharp.
    audit.canary_gradients: Random directions of norm clip_norm, shape (count, size): what canaries add to a clipped
        sum.
    audit.canary_scores: How much of each canary is in what was released (summed over all steps): their inner
        products, shape (count,).
    audit.clipping_holds_on_neighbours: Replay without noise: leaving any one example out moves the sum by at most
        clip_norm.
    audit.draw_inclusion: Each canary in or out by a fair coin of the operating system: shape (count,).
    audit.noise_is_as_large_as_stated: Chi-square of the noise released on empty batches, all coordinates together
        and each by itself.
    audit.noise_is_fresh: Equal or related noise at two clients or two steps: the correlation of every pair of draws
        (m, n).
    audit.steps_charged_equal_steps_noised: Hold the ledger's steps against NoiseSource.draws: more noised than
        charged is a release that nobody paid for.
    audit.sums_add_up: Replay without noise: the sum over a batch is the sum over its halves, and an empty batch has
        zeros.
    clip.Part: One group of trained tensors: each example's squared gradient norm, and the sums for given factors.
    clip.clip: Sum over examples of gradient * min(1, clip_norm / norm), the norm taken jointly over all parts.
    clip.linear_head: Logits V h (+ b): dV_i = p_i h_i^T, so ||dV_i||^2 = ||p_i||^2 ||h_i||^2, and ||p_i||^2 more
        with a bias.
    clip.next_clip_norm: C * exp(-rate * (b - quantile)): Andrew et al., "Differentially Private Learning with
        Adaptive Clipping", 2021.
    clip.output_gradients: Return the gradients of sum(losses) at each of the outputs: row i is that of example i
        alone.
    clip_adapter.diagonal_adapter: Return A = diag(a): da_i = sum_t g_t * x_t, a vector of d numbers an example.
    clip_adapter.full_adapter: G_i = sum_t g_t x_t^T, so ||G_i||^2 = sum_{t,s} (g_t . g_s)(x_t . x_s): two L x L
        Gram matrices an example.
    clip_adapter.low_rank_adapter: Return A = I + U V^T U (left) and V (right) (d, r): dU_i = sum_t g_t (V^T x_t)^T,
        dV_i = sum_t x_t (U^T g_t)^T.
    errors.BudgetError: The charge would cross the client's privacy budget; nothing was trained and nothing was
        charged.
    errors.LedgerError: The ledger was edited, truncated, is in use, or the clock went backwards.
    errors.PrivacyError: A mistake in the input, or a refusal: no epsilon can be given for this.
    errors.require: Raise PrivacyError with this one line unless the condition holds.
    ledger.Budget: What this client is willing to give away in all, over every run that uses this ledger.
    ledger.Ledger: One client's ledger.
    ledger.LedgerHead: Where a ledger stands: hand it to the server with every update, and have it back with every
        round.
    noise.NoiseSource: Where normals come from: the operating system, or a test seed that makes every epsilon
        infinite.
    noise.add_noise: Return the clipped sums plus Gaussian noise of this standard deviation on every coordinate.
    release.Release: A sum of clipped contributions with Gaussian noise on every coordinate, given out `steps`
        times.
    release.UNITS: what one unit of privacy can be: a question or a client.
    release.check_target: Refuse a target nobody should promise: epsilon <= 0, delta outside (0, 1) or >= 1 / count
        of units.
    statement.PAPER_RECIPE: why the paper's recipe has no formal guarantee.
    statement.Statement: Everything that a reader needs in order to check the claim; epsilon infinite is no claim,
        and `reason` says why.
    statement.from_json: Read what json.dumps(to_json(...)) wrote; the epsilon is computed again and must be the one
        that stands there.
    statement.plain_words: Return the statement for someone who has never heard of epsilon: a few short paragraphs.
    statement.state: Return the statement over these releases; `no_guarantee` is a reason why epsilon is infinite in
        any case.
    statement.to_json: For `json`: the infinite epsilon is the word "infinity", which float() reads back.
"""
