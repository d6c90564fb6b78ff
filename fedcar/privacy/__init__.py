"""Differential privacy: clipping, noise, an accountant, a ledger, a statement, an attack and an audit.

Imports nothing from the rest of fedcar. `clip` is the only module that needs torch; it is not imported here.

What other folders take:
    accountant.epsilon_of: Return the epsilon that all these releases together give away at this delta; infinite
        where noise does not count.
    accountant.fits: Whether all these releases together stay within (epsilon, delta): the test that calibration and
        ledger share.
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
    audit.BLOCKS: into how many parts residuals are cut.
    audit.Check: One finding: flagged where its p-value is below LEVEL.
    audit.certain: A check without chance: it holds, or there is a fault.
    audit.clipping_holds_on_neighbours: Replay without noise: leaving any one example out moves the sum by at most
        clip_norm.
    audit.noise_has_no_mean: Whether the residuals of the same coordinate add up over releases: what is there each
        time is no noise.
    audit.noise_ignores_the_sums: Whether residuals point along the exact sums, or are larger where those are:
        (releases, coordinates) each.
    audit.noise_is_as_large_as_stated: Chi-square of the noise released on empty batches, all coordinates together
        and each by itself.
    audit.noise_is_fresh: Equal or related noise at two clients or two steps: the correlation of every pair of draws
        (m, n).
    audit.noise_is_gaussian: The residuals' distribution against the normal one, and how many lie next to 0, where
        nothing was added.
    audit.noise_is_independent_within: Noise that comes again inside one release: rows of this width that are alike,
        blocks that repeat at any distance.
    audit.released_values_are_on_the_grid: Every value is a multiple of the largest power of two that is at most
        2^-20 of its standard deviation.
    audit.steps_charged_equal_steps_noised: Hold the ledger's steps against NoiseSource.draws: more noised than
        charged is a release that nobody paid for.
    audit.together: The same with p-values for all of them together: a correct run is flagged anywhere with at most
        LEVEL.
    checklist.checklist: What an officer ticks off, by heading, in short sentences.
    checklist.person_table: The epsilon that holds for someone who asked 1, 2, 5, 10, ...
    checklist.person_words: What the statement is worth for a person who asked several questions, and for a question
        that is reworded.
    clip.Clipped: The clipped sums by tensor name (not divided by anything), and counts, which are private: never
        release them.
    clip.Groups: Which examples belong together, as those of one person do: `of` (n,) is each one's group, from 0
        on.
    clip.Part: One group of trained tensors: each example's squared gradient norm, and the sums for given factors.
    clip.ROUNDING: by how much rounding to float32 may lengthen a mean.
    clip.clip: Sum over examples of gradient * min(1, clip_norm / norm), the norm taken jointly over all parts.
    clip.clip_update: Clip a client's whole update as one thing: unit "client".
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
    coins.coins_are_as_stated: How often units took part: in all, each unit, each step.
    coins.coins_are_fresh: Whether two runs, or two devices, have tossed the same coins: how often both say yes at
        the same place.
    coins.coins_are_independent: Whether counts by unit and by step spread as independent ones do, and coins say yes
        together no more often.
    errors.BudgetError: The charge would cross the client's privacy budget; nothing was trained and nothing was
        charged.
    errors.LedgerError: The ledger was edited, truncated, is in use, or the clock went backwards.
    errors.PrivacyError: A mistake in the input, or a refusal: no epsilon can be given for this.
    errors.require: Raise PrivacyError with this one line unless the condition holds.
    ledger.Budget: What this client is willing to give away in all, over every run that uses this ledger.
    ledger.Entry: One verified line.
    ledger.Ledger: One client's ledger.
    ledger.LedgerHead: Where a ledger stands: hand it to the server with every update, and have it back with every
        round.
    ledger.budget_of: What stands in them; the last that was set.
    ledger.in_json: JSON has no infinity; float() reads this word back.
    ledger.releases_of: What was charged, in order.
    membership.CONFIDENCE: of the lower bound on mu.
    membership.Canaries: Unit vectors of `size` coordinates at right angles: canary i has every count-th coordinate
        from i on.
    membership.Membership: What the attack came to, and what the claim allows at most.
    membership.attacked: Guess "there" where the ratio is above 1.
    membership.canaries_agree_with_the_claim: Whether more guesses are right than the claim allows.
    membership.draw_inclusion: Each canary in or out by a fair coin of the operating system: shape (count,).
    membership.log_likelihood_ratios: Of "it was there" against "it was not", over all releases: shape (count,).
    membership.simulated_area: The AUC of the same attack on releases that are as they are stated, by so many
        made-up canaries.
    noise.NoiseSource: Where normals come from: the operating system, or a test seed that makes every epsilon
        infinite.
    noise.add_noise: Return the clipped sums plus Gaussian noise of this standard deviation on every coordinate.
    reference.deltas: Bounds from below and from above on the delta that all these releases together need at this
        epsilon.
    reference.epsilon_at_least: An epsilon below the true one of all these releases together; infinite where one has
        no noise.
    release.Release: A sum of clipped contributions with Gaussian noise on every coordinate, given out `steps`
        times.
    release.UNITS: what one unit of privacy can be: a question or a client.
    release.check_target: Refuse a target nobody should promise: epsilon <= 0, delta outside (0, 1) or >= 1 / count
        of units.
    release.merged: Equal releases as one, steps added up, in order of first appearance: the same epsilon, shorter
        to say.
    release.of_a_question: What a release is to a question, as ledgers count it: one moves a sum no further than the
        person who asked it.
    statement.PAPER_RECIPE: why the paper's recipe has no formal guarantee.
    statement.Statement: Everything that a reader needs in order to check the claim; epsilon infinite is no claim,
        and `reason` says why.
    statement.from_json: Read what json.dumps(to_json(...)) wrote; the epsilon is computed again and must be the one
        that stands there.
    statement.plain_words: Return the statement for someone who has never heard of epsilon: a few short paragraphs.
    statement.state: Return the statement over these releases; `no_guarantee` is a reason why epsilon is infinite in
        any case.
    statement.to_json: For `json`: the infinite epsilon is the word "infinity", which float() reads back.
    statement.upgraded: A statement as to_json makes it today, of one that was written before.
"""
