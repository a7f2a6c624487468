// Functions of the law of arithmetic in double: same bits on every machine. Plain C.
#ifndef RLHF_FUNCTIONS_H
#define RLHF_FUNCTIONS_H

#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif
#ifdef __cplusplus
extern "C" {
#endif

double rlhf_exp(double x);
double rlhf_log(double x);
double rlhf_cos(double x);
double rlhf_pow(double x, double y);

#ifdef __cplusplus
}
#endif
#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#endif
