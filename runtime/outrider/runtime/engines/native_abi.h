/* The C ABI of a native artifact, version 1.
 *
 * An artifact is one shared library that needs nothing: no libc, no other library, no undefined symbol. It exports
 * the functions below, of which the last two may be missing, and for Python may export those of python_call.h, which
 * keep what belongs to the interpreter. A run leaves nothing for the next one: whatever it needs to write lies in
 * `outputs` and `workspace`, so several threads may run the artifact side by side, each with its own workspace.
 */
#ifndef OUTRIDER_NATIVE_ABI_H
#define OUTRIDER_NATIVE_ABI_H

#include <stddef.h>
#include <stdint.h>

#define OUTRIDER_ABI 1
#define OUTRIDER_API __attribute__((visibility("default")))

/* The version of this ABI that the artifact was built for. */
OUTRIDER_API uint32_t outrider_abi(void);

/* Bytes of scratch memory that a run of `batch` rows needs; the caller aligns it to 64 bytes. May be 0. */
OUTRIDER_API size_t outrider_workspace(int64_t batch);

/* Run `batch` >= 1 rows. `inputs` and `outputs` point to C-contiguous, little-endian arrays, in the order of the
 * manifest's artifact entry, aligned to their element size. Returns 0, or a positive number of the artifact's own. */
OUTRIDER_API int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace);

/* The same for inputs of float64 where the manifest says float32. An artifact has both or neither; one that defines
 * OUTRIDER_DOUBLE before it includes this has both. */
#ifdef OUTRIDER_DOUBLE
OUTRIDER_API size_t outrider_workspace_double(int64_t batch);
OUTRIDER_API int32_t outrider_run_double(const void *const *inputs, void *const *outputs, int64_t batch,
                                         void *workspace);
#endif

#endif
