// The functions of the law in double, for callers outside the kernels (TypeScript's learning rates, labels, positions).
#include "native/list/functions.h"
#include "kernels/cpu/math.h"

double rlhf_exp(double x) { return rlhf::RLHF_ISA::exp(x); }
double rlhf_log(double x) { return rlhf::RLHF_ISA::log(x); }
double rlhf_cos(double x) { return rlhf::RLHF_ISA::cos(x); }
double rlhf_pow(double x, double y) { return rlhf::RLHF_ISA::pow(x, y); }
