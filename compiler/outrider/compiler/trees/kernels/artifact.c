/* The one source file of an artifact: the ABI (native_abi.h) over a kernel for few rows and a kernel for many.
 *
 * `kernels.h` is written for each artifact. It includes the kernels' headers and says which is which: batches below
 * CROSSOVER rows go to the row kernel. Where one kernel serves both, CROSSOVER is 0. Kernels take float32 rows: others
 * are made such (narrow.h) block by block, in the first part of the workspace.
 */
#define OUTRIDER_DOUBLE
#include "native_abi.h"
#include "kernels.h"
#include "narrow.h"

static size_t kernel_workspace(int64_t batch) {
#if CROSSOVER
    if (batch < CROSSOVER) return ROW_WORKSPACE(batch);
#endif
    return BATCH_WORKSPACE(batch);
}

/* Not inlined: kernels read floats as integers, which must not be moved before the writing of a block. */
__attribute__((noinline)) static int32_t kernel_run(const float *rows, float *results, int64_t batch, void *workspace) {
#if CROSSOVER
    if (batch < CROSSOVER) {
        ROW_RUN(rows, results, batch, workspace);
        return 0;
    }
#endif
    BATCH_RUN(rows, results, batch, workspace);
    return 0;
}

/* Blocks of nearly equal length, of NARROW_ROWS rows at most. */
static int64_t block_count(int64_t batch) { return 1 + (batch - 1) / NARROW_ROWS; }

static size_t block_bytes(int64_t batch) {
    return ROUND_UP((size_t)(1 + (batch - 1) / block_count(batch)) * FEATURES * sizeof(float));
}

static size_t blocks_workspace(int64_t batch) {
    int64_t count = block_count(batch);
    size_t least = kernel_workspace(batch / count), most = kernel_workspace(1 + (batch - 1) / count);
    return block_bytes(batch) + (least > most ? least : most);
}

INLINE int32_t blocks_run(const void *rows, float *results, int64_t batch, void *workspace, int wide) {
    int64_t count = block_count(batch);
    float *block = workspace;
    for (int64_t i = 0; i < count; i++) {
        int64_t first = batch * i / count, last = batch * (i + 1) / count;
        for (int64_t row = first; row < last; row++) {
            float *out = block + (row - first) * FEATURES;
            if (wide) narrow_row((const double *)rows + row * FEATURES, out);
            else narrow_copy((const float *)rows + row * FEATURES, out);
        }
        kernel_run(block, results + first * COLUMNS_OUT, last - first, (char *)workspace + block_bytes(batch));
    }
    return 0;
}

OUTRIDER_API uint32_t outrider_abi(void) { return OUTRIDER_ABI; }

OUTRIDER_API size_t outrider_workspace(int64_t batch) {
    return NARROW_RANKED ? blocks_workspace(batch) : kernel_workspace(batch);
}

OUTRIDER_API int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace) {
    if (NARROW_RANKED) return blocks_run(inputs[0], outputs[0], batch, workspace, 0);
    return kernel_run(inputs[0], outputs[0], batch, workspace);
}

OUTRIDER_API size_t outrider_workspace_double(int64_t batch) { return blocks_workspace(batch); }

OUTRIDER_API int32_t outrider_run_double(const void *const *inputs, void *const *outputs, int64_t batch,
                                         void *workspace) {
    return blocks_run(inputs[0], outputs[0], batch, workspace, 1);
}

#ifndef __wasm__
#include "python_call.h"
#endif
