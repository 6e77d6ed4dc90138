/* The C ABI of native_abi.h as a WebAssembly module, and what its host does.
 *
 * A module is compiled from the same sources as a native artifact, for wasm32: pointers and size_t are i32, int64_t is
 * i64. It imports nothing, WASI included, so any engine runs it, in a browser too; it is a reactor, without a start
 * function. It exports
 *
 *   memory        its linear memory, little-endian
 *   __heap_base   a constant i32: from this address on the memory is the host's
 *   the functions of native_abi.h, such as outrider_run: (inputs i32, outputs i32, batch i64, workspace i32) -> i32
 *
 * Below __heap_base lie the stack (1 MiB at the bottom, so that its overflow traps) and the tables, which are the
 * module's. It has no allocator: the host places inputs, outputs, the two arrays of i32 addresses and the workspace
 * above __heap_base as it likes, aligned as native_abi.h says, and grows the memory to what they take. Nothing is kept
 * between calls, so the host may place them anew each time. After a trap it takes a new instance, since the stack
 * pointer is where the trap left it.
 *
 * The least feature set is Lime1: WebAssembly 1.0 with mutable globals, sign extension, bulk memory copies,
 * non-trapping conversions, multiple values and extended constants. A module that needs more says so in the manifest's
 * `needs.features`, which name what the engine must have (`lime1`, `simd128`), whatever the machine.
 */
#include "native_abi.h"
