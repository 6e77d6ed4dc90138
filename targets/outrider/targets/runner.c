/* Runs one native artifact: runner LIB SUFFIX BATCH INPUT_BYTES... -- OUTPUT_BYTES... < inputs > outputs
 *
 * SUFFIX is that of the functions: empty, or _double for float64 inputs. */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TENSORS 256

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "%s: %s\n", what, detail);
    exit(3);
}

static void *allocate(size_t size) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, size ? size : 64)) fail("out of memory", "");
    return memory;
}

static void *find(void *library, const char *stem, const char *suffix) {
    char name[64];
    snprintf(name, sizeof name, "%s%s", stem, suffix);
    void *symbol = dlsym(library, name);
    if (!symbol) fail("missing symbol", name);
    return symbol;
}

int main(int argc, char **argv) {
    const void *inputs[MAX_TENSORS];
    void *outputs[MAX_TENSORS];
    size_t sizes[MAX_TENSORS];
    int n_in = 0, n_out = 0, after = 0;
    if (argc < 5 || argc > MAX_TENSORS) fail("usage", "runner LIB SUFFIX BATCH INPUT_BYTES... -- OUTPUT_BYTES...");
    for (int i = 4; i < argc; i++) {
        if (!strcmp(argv[i], "--")) { after = 1; continue; }
        size_t size = (size_t)strtoull(argv[i], NULL, 10);
        void *memory = allocate(size);
        if (after) {
            sizes[n_out] = size;
            outputs[n_out++] = memory;
        } else {
            if (fread(memory, 1, size, stdin) != size) fail("short input", argv[i]);
            inputs[n_in++] = memory;
        }
    }
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) fail("dlopen", dlerror());
    uint32_t (*abi)(void) = (uint32_t (*)(void))find(library, "outrider_abi", "");
    size_t (*workspace)(int64_t) = (size_t (*)(int64_t))find(library, "outrider_workspace", argv[2]);
    int32_t (*run)(const void *const *, void *const *, int64_t, void *) =
        (int32_t (*)(const void *const *, void *const *, int64_t, void *))find(library, "outrider_run", argv[2]);
    if (abi() != 1) fail("unknown abi", "the library is not of native ABI 1");
    int64_t batch = (int64_t)strtoll(argv[3], NULL, 10);
    int32_t status = run(inputs, outputs, batch, allocate(workspace(batch)));
    if (status) { fprintf(stderr, "outrider_run returned %" PRId32 "\n", status); return 4; }
    for (int i = 0; i < n_out; i++)
        if (fwrite(outputs[i], 1, sizes[i], stdout) != sizes[i]) fail("write", "stdout");
    return fflush(stdout) ? 5 : 0;
}
