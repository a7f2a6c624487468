// Forgets the macros that ops.h was expanded with, so that it can be included again with others.
#undef IN
#undef OPT
#undef OUT
#undef OPT_OUT
#undef ADD
#undef OPT_ADD
#undef IDS
#undef OFFSETS
#undef REAL
#undef INT
#undef CHOICE
#undef OP
#undef POLICY_LOSS
#undef SCRATCH
