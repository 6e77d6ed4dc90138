/* The one source file of an artifact: the ABI (native_abi.h) over a kernel for few rows and a kernel for many.
 *
 * `kernels.h` is written for each artifact. It includes the kernels' headers and says which is which: batches below
 * CROSSOVER rows go to the row kernel. Where one kernel serves both, CROSSOVER is 0.
 */
#include "native_abi.h"
#include "kernels.h"

OUTRIDER_API uint32_t outrider_abi(void) { return OUTRIDER_ABI; }

OUTRIDER_API size_t outrider_workspace(int64_t batch) {
#if CROSSOVER
    if (batch < CROSSOVER) return ROW_WORKSPACE(batch);
#endif
    return BATCH_WORKSPACE(batch);
}

OUTRIDER_API int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace) {
#if CROSSOVER
    if (batch < CROSSOVER) {
        ROW_RUN(inputs[0], outputs[0], batch, workspace);
        return 0;
    }
#endif
    BATCH_RUN(inputs[0], outputs[0], batch, workspace);
    return 0;
}

#ifndef __wasm__
#include "python_call.h"
#endif
