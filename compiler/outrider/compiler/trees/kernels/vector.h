/* Vectors of bytes on any instruction set that has them: SSE, AVX2, NEON, RVV, WebAssembly's, or none.
 *
 * The types are those of GCC and Clang, whose operators compile to the machine's own instructions. Here is what they
 * lack. Everything has a portable form, so what is right with one instruction set is right with all.
 */
#ifndef OUTRIDER_VECTOR_H
#define OUTRIDER_VECTOR_H

#include <stddef.h>
#include <stdint.h>

#include "columns.h"
#include "common.h"
#include "vector_tables.h"

#if defined(__SSSE3__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#endif

#define VECTOR_UNROLL _Pragma("clang loop unroll(full)")

/* A byte a row, VECTOR_BYTES rows: 16 or 32. */
typedef uint8_t vector_t __attribute__((vector_size(VECTOR_BYTES)));
typedef int8_t vector_signed_t __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t vector_words_t __attribute__((vector_size(VECTOR_BYTES)));

INLINE vector_t vector_load(const void *from) { return *(const vector_t *)from; }
INLINE void vector_store(void *to, vector_t value) { *(vector_t *)to = value; }
INLINE vector_t vector_of(uint8_t value) { return (vector_t){0} + value; }

/* From a word of four equal bytes, which loads more cheaply into every word than a byte into every byte. */
INLINE vector_t vector_splat(uint32_t four) { return (vector_t)((vector_words_t){0} + four); }

/* Masks are the results of comparisons, 255 or 0 a byte. Bytes compare signed, which SSE has an instruction for. */
INLINE vector_t vector_above(vector_t a, vector_t b) { return (vector_t)((vector_signed_t)a > (vector_signed_t)b); }
INLINE vector_t vector_equal(vector_t a, vector_t b) { return (vector_t)(a == b); }

/* A mask as just bytes. A compiler that knows where they come from turns logic on them into blends, dearer on x86. */
INLINE vector_t vector_opaque(vector_t mask) {
#if defined(__SSSE3__)
    __asm__("" : "+x"(mask));
#endif
    return mask;
}

/* `left` or `right`, by a mask. `right` must not be below `left`: where blends are dear, that makes it a maximum. */
INLINE vector_t vector_choose(vector_t left, vector_t is_left, vector_t right) {
#if defined(__SSSE3__)
    return __builtin_elementwise_max(left, right & ~vector_opaque(is_left));
#else
    return (left & is_left) | (right & ~is_left);
#endif
}

/* The bytes of two vectors in turn: of the lower halves of each 16 bytes, and of the upper halves. */
#define VECTOR_TURNS(i, j)                                                                                          \
    (i), (j), (i) + 1, (j) + 1, (i) + 2, (j) + 2, (i) + 3, (j) + 3, (i) + 4, (j) + 4, (i) + 5, (j) + 5, (i) + 6,    \
        (j) + 6, (i) + 7, (j) + 7
#if VECTOR_BYTES == 32
#define VECTOR_ZIP(a, b, at) \
    __builtin_shufflevector(a, b, VECTOR_TURNS(at, at + 32), VECTOR_TURNS(at + 16, at + 48))
#else
#define VECTOR_ZIP(a, b, at) __builtin_shufflevector(a, b, VECTOR_TURNS(at, at + 16))
#endif
INLINE vector_t vector_zip_low(vector_t a, vector_t b) { return VECTOR_ZIP(a, b, 0); }
INLINE vector_t vector_zip_high(vector_t a, vector_t b) { return VECTOR_ZIP(a, b, 8); }

/* Indices of any size as vector_look_up takes them; those below 16 it takes as they are, too. */
INLINE vector_t vector_index(vector_t index) {
#if defined(__SSSE3__)
    return __builtin_elementwise_add_sat(index, vector_of(0x70));
#else
    return index;
#endif
}

/* Entries of a table of 16 bytes, aligned to 16; 0 for indices that are not below 16. */
INLINE vector_t vector_look_up(const uint8_t *table, vector_t index) {
#if defined(__AVX2__) && VECTOR_BYTES == 32
    __m256i twice = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)table));
    return (vector_t)_mm256_shuffle_epi8(twice, (__m256i)index);
#elif defined(__SSSE3__) && VECTOR_BYTES == 16
    return (vector_t)_mm_shuffle_epi8(_mm_load_si128((const __m128i *)table), (__m128i)index);
#elif defined(__aarch64__) && VECTOR_BYTES == 16
    return (vector_t)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)index);
#elif defined(__ARM_NEON) && VECTOR_BYTES == 16
    const uint8x8x2_t halves = {{vld1_u8(table), vld1_u8(table + 8)}};
    const uint8x16_t at = (uint8x16_t)index;
    return (vector_t)vcombine_u8(vtbl2_u8(halves, vget_low_u8(at)), vtbl2_u8(halves, vget_high_u8(at)));
#elif defined(__wasm_simd128__) && VECTOR_BYTES == 16
    return (vector_t)wasm_i8x16_swizzle(wasm_v128_load(table), (v128_t)index);
#else
    vector_t found;
    for (int i = 0; i < VECTOR_BYTES; i++) found[i] = index[i] < 16 ? table[index[i]] : 0;
    return found;
#endif
}

#endif
