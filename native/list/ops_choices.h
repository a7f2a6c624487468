// The lists that a CHOICE argument picks from: the position is the value; a name's '_' reads '-' outside C.
// clang-format off
#define RLHF_CHOICES(LIST)                                                                                            \
  LIST(Aggregation, ITEM(token_mean) ITEM(seq_mean_token_sum) ITEM(seq_mean_token_mean) ITEM(seq_mean_token_sum_norm)) \
  LIST(Objective, ITEM(clipped_ratio) ITEM(log_likelihood))                                                           \
  LIST(KlEstimator, ITEM(k1) ITEM(abs) ITEM(k2) ITEM(k3))                                                            \
  LIST(Preference, ITEM(bradley_terry) ITEM(dpo) ITEM(ipo))                                                           \
  LIST(Whitening, ITEM(verl) ITEM(trl) ITEM(openrlhf))                                                                \
  LIST(GeluForm, ITEM(tanh) ITEM(erf))
