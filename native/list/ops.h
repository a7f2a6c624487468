// The list of ops: every op once, with the name, kind and shape of each argument, in order.
// The C prototypes, the argument structs of the kernels, the dispatch tables, the addon's binding, the shape
// checks and `rlhf ops` are all expanded from these lines (define the macros below, then include this file).
//
//   IN, OPT        (type, name, dims)   input; OPT may be absent
//   OUT, OPT_OUT   (type, name, dims)   written; OPT_OUT is computed only where it is given
//   ADD, OPT_ADD   (type, name, dims)   continued: the sum goes on from what it holds (law of arithmetic, 1)
//   IDS            (name, dims, limit)  int32, each in [0, limit)
//   OFFSETS        (name, dims, total)  int32, from 0 to total, monotone: packed sequences (cuSeqlens)
//   REAL, INT      (name, range)        double, int64, in one of the ranges of op_table.h; NaN is in none
//   CHOICE         (list, name)         one of a list of names (ops_choices.h)
//   SCRATCH                             the op asks for workspace
//
// type: F32, F64, I32: contiguous;  ROWS: F32 whose dimension 0 may be strided;  EITHER: F32, or on a CPU bf16, which
// is
//   widened as it is read;  WEIGHT: EITHER, row-major or packed;  SAME: contiguous. On a GPU that takes an op at bf16,
//   its ROWS, WEIGHT and SAME are so together.
// dims: one letter per dimension, the same letter is the same size in the whole op; "B+1"; a number; "..." is any
// shape, the same wherever it stands in the op. A letter that no input binds is chosen by the caller.
//
// N tokens  B sequences  M scored tokens  H, G query and key/value heads  D head size  C width  V vocabulary
// I, O inputs and outputs of a linear layer  S cache slots  P pairs

// clang-format off
#ifndef SCRATCH
#define SCRATCH
#endif

// ---- linear layers: y = x W^T + b, W [O,I]
// packed: the panels that gemm reads, rounded if they are bf16; lanes over O (transposed = 0: for linear) or over I (1: for
// linear_grad_input)
OP(pack, IN(EITHER, weight, "O,I") INT(transposed, flag()) OUT(EITHER, packed, "P"))
OP(linear, SCRATCH IN(ROWS, x, "N,I") IN(WEIGHT, weight, "O,I") OPT(F32, bias, "O") OUT(F32, y, "N,O"))
OP(linear_grad_input, SCRATCH IN(ROWS, dy, "N,O") IN(WEIGHT, weight, "O,I") OUT(F32, dx, "N,I"))
OP(linear_grad_weight, SCRATCH IN(ROWS, dy, "N,O") IN(ROWS, x, "N,I") ADD(F32, dweight, "O,I") OPT_ADD(F32, dbias, "O"))
// a head with one output, scored at chosen rows: value[m] = h[rows[m]] . w + b
OP(score, IN(ROWS, h, "N,C") IN(F32, weight, "1,C") OPT(F32, bias, "1") IDS(rows, "M", "N") OUT(F32, value, "M"))
OP(score_grad, IN(F32, dvalue, "M") IN(ROWS, h, "N,C") IN(F32, weight, "1,C") IDS(rows, "M", "N")
     OPT_OUT(F32, dh, "N,C") OPT_ADD(F32, dweight, "1,C") OPT_ADD(F32, dbias, "1"))

// ---- embedding, positions, norms, activations
OP(embedding, IDS(ids, "N", "V") IN(EITHER, table, "V,C") OUT(F32, y, "N,C"))
OP(embedding_grad, IDS(ids, "N", "V") IN(ROWS, dy, "N,C") ADD(F32, dtable, "V,C"))
OP(rope, SCRATCH IN(ROWS, x, "N,H,D") IN(I32, positions, "N") IN(F32, inverse_frequency, "R") INT(inverse, flag())
     OUT(F32, y, "N,H,D"))
OP(layer_norm, IN(ROWS, x, "N,C") IN(F32, gain, "C") OPT(F32, bias, "C") REAL(eps, not_negative())
     OUT(F32, y, "N,C") OUT(F32, mean, "N") OUT(F32, rstd, "N"))
OP(layer_norm_grad, IN(ROWS, dy, "N,C") IN(ROWS, x, "N,C") IN(F32, gain, "C") IN(F32, mean, "N") IN(F32, rstd, "N")
     OUT(F32, dx, "N,C") OPT_ADD(F32, dgain, "C") OPT_ADD(F32, dbias, "C"))
OP(rms_norm, IN(ROWS, x, "N,C") IN(F32, gain, "C") REAL(eps, not_negative()) OUT(F32, y, "N,C") OUT(F32, rstd, "N"))
OP(rms_norm_grad, IN(ROWS, dy, "N,C") IN(ROWS, x, "N,C") IN(F32, gain, "C") IN(F32, rstd, "N")
     OUT(F32, dx, "N,C") OPT_ADD(F32, dgain, "C"))
OP(gelu, IN(F32, x, "...") CHOICE(GeluForm, form) OUT(F32, y, "..."))
OP(gelu_grad, IN(F32, dy, "...") IN(F32, x, "...") CHOICE(GeluForm, form) OUT(F32, dx, "..."))
OP(swiglu, IN(F32, gate, "...") IN(F32, up, "...") OUT(F32, y, "..."))
OP(swiglu_grad, IN(F32, dy, "...") IN(F32, gate, "...") IN(F32, up, "...") OUT(F32, dgate, "...") OUT(F32, dup, "..."))

// ---- attention: causal, grouped-query, packed
OP(attention, SCRATCH IN(ROWS, q, "N,H,D") IN(ROWS, k, "N,G,D") IN(ROWS, v, "N,G,D") OFFSETS(cu_seqlens, "B+1", "N")
     OPT(I32, prefix, "B") REAL(scale, finite()) OUT(SAME, o, "N,H,D") OUT(F32, lse, "N,H"))
OP(attention_grad, SCRATCH IN(ROWS, d_o, "N,H,D") IN(ROWS, q, "N,H,D") IN(ROWS, k, "N,G,D") IN(ROWS, v, "N,G,D")
     IN(SAME, o, "N,H,D") IN(F32, lse, "N,H") OFFSETS(cu_seqlens, "B+1", "N") OPT(I32, prefix, "B") REAL(scale, finite())
     OUT(SAME, dq, "N,H,D") OUT(SAME, dk, "N,G,D") OUT(SAME, dv, "N,G,D"))
// the cache of a layer: per slot and head, T = capacity in tokens (a multiple of 64), in the layout that decode reads
OP(kv_write, IN(ROWS, k, "N,G,D") IN(ROWS, v, "N,G,D") IDS(slots, "N", "S") IDS(positions, "N", "T")
     ADD(F32, k_cache, "S,G,T,D") ADD(F32, v_cache, "S,G,T,D"))
OP(kv_copy, IDS(from, "M", "S") IDS(to, "M", "S") ADD(F32, k_cache, "S,G,T,D") ADD(F32, v_cache, "S,G,T,D"))
// lengths[b]: tokens of the slot that the query sees, itself included
OP(attention_decode, SCRATCH IN(ROWS, q, "B,H,D") IN(F32, k_cache, "S,G,T,D") IN(F32, v_cache, "S,G,T,D")
     IDS(slots, "B", "S") IN(I32, lengths, "B") REAL(scale, finite()) OUT(F32, o, "B,H,D"))

// ---- log-probs: logits / temperature; lse = log sum exp; entropy in nats
OP(logprob, IN(ROWS, logits, "M,V") IDS(y, "M", "V") REAL(temperature, temperature())
     OUT(F32, logp, "M") OUT(F32, lse, "M") OUT(F32, entropy, "M"))
OP(logprob_grad, IN(ROWS, logits, "M,V") IDS(y, "M", "V") IN(F32, logp, "M") IN(F32, lse, "M") IN(F32, entropy, "M")
     IN(F32, dlogp, "M") OPT(F32, dentropy, "M") REAL(temperature, temperature()) OUT(SAME, dlogits, "M,V"))
OP(linear_logprob, SCRATCH IN(ROWS, h, "N,C") IN(WEIGHT, weight, "V,C") IDS(rows, "M", "N") IDS(y, "M", "V")
     REAL(temperature, temperature()) OUT(F32, logp, "M") OUT(F32, lse, "M") OUT(F32, entropy, "M"))
OP(linear_logprob_grad, SCRATCH IN(ROWS, h, "N,C") IN(WEIGHT, weight, "V,C") IDS(rows, "M", "N") IDS(y, "M", "V")
     IN(F32, logp, "M") IN(F32, lse, "M") IN(F32, entropy, "M") IN(F32, dlogp, "M") OPT(F32, dentropy, "M")
     REAL(temperature, temperature()) OPT_OUT(SAME, dh, "N,C") OPT_ADD(F32, dweight, "V,C"))
// full KL(p || q) of each row, p and q given by their logits
OP(full_kl, IN(ROWS, logits, "M,V") IN(ROWS, ref_logits, "M,V") REAL(temperature, temperature()) OUT(F32, kl, "M"))

// ---- advantages and rewards
OP(gae, IN(F32, rewards, "N") IN(F32, values, "N") OPT(I32, mask, "N") OFFSETS(cu_seqlens, "B+1", "N")
     REAL(gamma, within(0, 1)) REAL(lambda, within(0, 1)) OUT(F32, advantages, "N") OUT(F32, returns, "N"))
OP(gae_padded, IN(ROWS, rewards, "B,T") IN(ROWS, values, "B,T") IN(I32, mask, "B,T") REAL(gamma, within(0, 1)) REAL(lambda, within(0, 1))
     OUT(F32, advantages, "B,T") OUT(F32, returns, "B,T"))
// reward[t] = -kl_coef kl[t], plus the score of the sequence at its last token
OP(token_rewards, IN(F32, logp, "M") IN(F32, ref_logp, "M") IN(F32, scores, "B") OFFSETS(cu_seqlens, "B+1", "M")
     REAL(kl_coef, finite()) CHOICE(KlEstimator, estimator) OUT(F32, rewards, "M") OUT(F32, kl, "M"))
OP(whiten, IN(F32, x, "N") OPT(I32, mask, "N") OFFSETS(cu_seqlens, "B+1", "N") INT(shift_mean, flag()) CHOICE(Whitening, form)
     OUT(F32, y, "N"))
// count, sum, sum of squares, min, max of the unmasked
OP(moments, IN(F32, x, "N") OPT(I32, mask, "N") OFFSETS(cu_seqlens, "B+1", "N") OUT(F64, moments, "5"))
OP(sequence_sum, IN(F32, x, "N") OFFSETS(cu_seqlens, "B+1", "N") INT(mean, flag()) OUT(F32, y, "B"))
OP(sequence_sum_grad, IN(F32, dy, "B") OFFSETS(cu_seqlens, "B+1", "N") INT(mean, flag()) OUT(F32, dx, "N"))

// ---- losses: gradients come with them; denominator: over the whole update; scale: factor of loss and gradients.
// A limit that is off is infinity.
#define POLICY_LOSS                                                                                             \
  IN(F32, old_logp, "M") IN(F32, advantages, "M") OPT(F32, ref_logp, "M") OPT(F32, importance, "M")             \
  OPT(I32, mask, "M") OFFSETS(cu_seqlens, "B+1", "M") CHOICE(Objective, objective)                              \
  REAL(clip_ratio_low, from(0)) REAL(clip_ratio_high, from(0)) REAL(clip_ratio_c, from(1))                      \
  REAL(log_ratio_clamp, from(0)) CHOICE(Aggregation, aggregation) REAL(denominator, positive())                 \
  REAL(kl_coef, finite()) CHOICE(KlEstimator, estimator) REAL(entropy_coef, finite()) REAL(scale, finite())     \
  ADD(F64, stats, "12")
// stats, summed on. Weighted as the aggregation says: loss, policy loss, kl loss. Sums over tokens: entropy, clipped,
// clipped by clip_ratio_c, k1 to the old policy, k3 to the old policy, ratio. Counts: tokens, tokens with ratio != 1,
// sequences
OP(policy_loss, SCRATCH IN(F32, logp, "M") OPT(F32, entropy, "M") POLICY_LOSS
     OUT(F32, loss, "1") OUT(F32, dlogp, "M") OPT_OUT(F32, dentropy, "M"))
OP(linear_policy_loss, SCRATCH IN(ROWS, h, "N,C") IN(WEIGHT, weight, "V,C") IDS(rows, "M", "N") IDS(y, "M", "V")
     REAL(temperature, temperature()) POLICY_LOSS
     OUT(F32, loss, "1") OUT(F32, logp, "M") OUT(F32, entropy, "M") OPT_OUT(SAME, dh, "N,C") OPT_ADD(F32, dweight, "V,C"))
// stats: loss (weighted); sums over tokens: clipped, value, squared error to the return, return, squared return; tokens; 0
OP(value_loss, SCRATCH IN(F32, values, "M") OPT(F32, old_values, "M") IN(F32, returns, "M") OPT(I32, mask, "M")
     OFFSETS(cu_seqlens, "B+1", "M") REAL(clip_range, from(0)) CHOICE(Aggregation, aggregation) REAL(denominator, positive())
     REAL(scale, finite()) ADD(F64, stats, "8") OUT(F32, loss, "1") OUT(F32, dvalues, "M"))
// pair p prefers scores[chosen[p]] to scores[rejected[p]]; a score may stand in many pairs (rankings)
// stats (sums over pairs): loss, chosen wins, difference, chosen, rejected, pairs, probability of the chosen, 0
OP(preference_loss, SCRATCH IN(F32, scores, "M") OPT(F32, ref_scores, "M") IDS(chosen, "P", "M") IDS(rejected, "P", "M")
     OPT(F32, margin, "P") OPT(F32, label, "P") OPT(F32, weight, "P") CHOICE(Preference, form) REAL(beta, positive())
     REAL(label_smoothing, within(0, 0.5)) REAL(center_coef, finite()) REAL(denominator, positive()) REAL(scale, finite())
     ADD(F64, stats, "8") OUT(F32, loss, "1") OUT(F32, dscores, "M"))

// ---- optimizer
OP(norm_squared, SCRATCH IN(F32, x, "...") ADD(F64, total, "1"))
// grad is scaled by min(1, max_norm / (sqrt(norm_squared) + 1e-6)); step counts from 1
OP(adamw, ADD(F32, weight, "...") IN(F32, grad, "...") ADD(F32, m, "...") ADD(F32, v, "...") IN(F64, norm_squared, "1")
     REAL(lr, finite()) REAL(beta1, fraction()) REAL(beta2, fraction()) REAL(eps, not_negative()) 
     REAL(weight_decay, finite()) REAL(max_norm, from(0)) INT(step, from(1)))

// ---- sampling and random numbers: Philox 4x32-10, key (seed, stream), counter [update, prompt, sample, position]
OP(sample, SCRATCH IN(ROWS, logits, "M,V") IN(I32, counter, "M,4") INT(seed, any()) INT(stream, any())
     REAL(temperature, not_negative()) INT(top_k, any()) REAL(top_p, within(0, 1)) REAL(min_p, within(0, 1))
     OUT(I32, token, "M") OUT(F32, logp, "M") OUT(F32, truncated_logp, "M"))
OP(normal, INT(seed, any()) INT(stream, any()) REAL(mean, finite()) REAL(deviation, not_negative()) OUT(F32, y, "..."))

// ---- elementwise
OP(add, IN(F32, a, "...") IN(F32, b, "...") OUT(F32, y, "..."))
OP(sub, IN(F32, a, "...") IN(F32, b, "...") OUT(F32, y, "..."))
OP(mul, IN(F32, a, "...") IN(F32, b, "...") OUT(F32, y, "..."))
OP(scale, IN(F32, x, "...") REAL(factor, any()) REAL(shift, any()) OUT(F32, y, "..."))
OP(clamp, IN(F32, x, "...") REAL(low, any()) REAL(high, any()) OUT(F32, y, "..."))
// dx: dy where low <= x <= high, else 0
OP(clamp_grad, IN(F32, dy, "...") IN(F32, x, "...") REAL(low, any()) REAL(high, any()) OUT(F32, dx, "..."))
OP(accumulate, IN(F32, x, "...") ADD(F32, y, "..."))
OP(cast, IN(EITHER, x, "...") OUT(EITHER, y, "..."))  // to bf16: to nearest, ties to even
OP(fill, REAL(value, any()) OUT(F32, y, "..."))
OP(sum, IN(F32, x, "...") OUT(F32, y, "1"))

// ---- the machine's limits, for the benchmarks: independent chains of fused multiply-adds on every thread (sink[t] is
// the number of floating-point operations of thread t), and memory streams that are read, updated and written
OP(limit_fma, INT(rounds, from(0)) OUT(F64, sink, "T"))
OP(limit_stream, INT(rounds, from(0)) INT(past_caches, flag()) IN(F32, x, "R,N") ADD(F32, y, "U,N") OUT(F32, z, "W,N") OUT(F32, sink, "T"))
// and what the law of arithmetic costs: the same results in whatever order is fastest
OP(limit_linear, SCRATCH IN(ROWS, x, "N,I") IN(F32, weight, "O,I") OUT(F32, y, "N,O"))
OP(limit_attention, SCRATCH IN(ROWS, q, "N,H,D") IN(ROWS, k, "N,G,D") IN(ROWS, v, "N,G,D") OFFSETS(cu_seqlens, "B+1", "N")
     REAL(scale, finite()) OUT(F32, o, "N,H,D"))
