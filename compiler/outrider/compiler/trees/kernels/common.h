/* What every kernel may use: how helpers are declared, and how scratch memory is cut up. */
#ifndef OUTRIDER_COMMON_H
#define OUTRIDER_COMMON_H

#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline, unused))

/* Bytes, rounded up to a cache line: parts of a workspace start at one. */
#define ROUND_UP(size) (((size_t)(size) + 63) & ~(size_t)63)

#endif
