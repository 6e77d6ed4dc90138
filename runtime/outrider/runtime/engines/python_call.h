/* A Python function in an artifact: numpy array in, numpy array out, with nothing between the interpreter and the run.
 *
 * Idea: for a small model, preparing a call from Python takes longer than the run. An artifact that includes this file
 * exports `outrider_python`, which makes a built-in function of the interpreter that loaded it. That checks its
 * argument, makes the result and runs the artifact. All of this and the call in Python itself add about 100 ns to the
 * run (docs/adr/0011). Whatever is not plainly right (another type, dtype or shape, no memory, a failed run) goes to
 * `fallback`, a Python function that does it in full, or raises.
 *
 * The artifact keeps no undefined symbol and includes no header of CPython or numpy: the runtime (python_call.py)
 * passes the addresses of the functions that are used, all but numpy's own of the stable ABI. Of objects only the head
 * is read, and of arrays the fields below, which have kept their places since numpy 1.0; the runtime checks them before
 * the first use.
 *
 * Exports beside those of native_abi.h, for the runtime alone, to be called with the interpreter's lock held:
 *   size_t outrider_python_size(void)          bytes of a function's state, zeros at first
 *   object_t *outrider_python(state, ...)      a new function
 *   void outrider_python_close(state)          from now on all calls go to the fallback
 *   void outrider_python_free(state)           the state's memory, when the function is gone
 *   void outrider_python_double(state, ...)    from now on float64 arrays are taken too; only with OUTRIDER_DOUBLE
 */
#ifndef OUTRIDER_PYTHON_CALL_H
#define OUTRIDER_PYTHON_CALL_H

#include "native_abi.h"

#define PYTHON_ONE_ARGUMENT 0x0008 /* METH_O */
#define PYTHON_PLAIN_ARRAY 0x0101  /* C-contiguous and aligned */
#define PYTHON_ALIGNMENT 64        /* of the workspace */
#define PYTHON_LONG_BATCH 32       /* rows from which on other threads may run meanwhile: to let them costs 50 ns */

typedef struct object { intptr_t references; void *type; } object_t;
typedef struct {
    object_t head;
    void *data;
    int dimensions;
    intptr_t *shape, *strides;
    object_t *base, *dtype;
    int flags;
} array_t;
typedef object_t *(*python_function_t)(object_t *self, object_t *argument);
typedef struct { const char *name; python_function_t function; int flags; const char *doc; } python_method_t;

/* What the runtime passes, in the order of python_call.py. */
typedef struct {
    object_t *(*new_function)(python_method_t *method, object_t *self, object_t *module); /* PyCFunction_NewEx */
    char *(*bytes)(object_t *bytearray);                                                  /* PyByteArray_AsString */
    object_t *(*call)(object_t *function, object_t *argument);                            /* PyObject_CallOneArg */
    void (*retain)(object_t *object);                                                     /* Py_IncRef */
    void (*release)(object_t *object);                                                    /* Py_DecRef */
    void *(*unlock)(void);                                                                /* PyEval_SaveThread */
    void (*lock)(void *thread);                                                           /* PyEval_RestoreThread */
    void (*clear_error)(void);                                                            /* PyErr_Clear */
    void *(*allocate)(size_t size);                                                       /* PyMem_RawMalloc */
    void (*free)(void *memory);                                                           /* PyMem_RawFree */
    object_t *(*new_array)(void *type, object_t *dtype, int dimensions, const intptr_t *shape, const intptr_t *strides,
                           void *data, int flags, object_t *base);                        /* PyArray_NewFromDescr */
    void *array_type;
    object_t *float32;
} python_t;

/* A function's state. `features` columns come in, and `columns` go out, as a vector where that is 0. Batches of more
 * than `most` rows are not for this function. `float64` is NULL until such arrays are taken. A call takes the workspace
 * away while it runs, so that calls side by side have each their own. */
typedef struct {
    python_method_t method;
    object_t *fallback, *float64;
    intptr_t features, columns, most;
    void *workspace;
    size_t size;
} python_state_t;

/* One interpreter a process, so its addresses are the same for all functions. */
static python_t PYTHON;

static inline void *python_take(python_state_t *state, size_t needed, size_t *size) {
    void *workspace = state->workspace;
    *size = state->size;
    state->workspace = NULL;
    if (workspace && *size >= needed) return workspace;
    PYTHON.free(workspace);
    *size = needed;
    return PYTHON.allocate(needed + PYTHON_ALIGNMENT);
}

static inline void python_give_back(python_state_t *state, void *workspace, size_t size) {
    if (state->workspace) {
        PYTHON.free(workspace);
    } else {
        state->workspace = workspace;
        state->size = size;
    }
}

static inline void *python_aligned(void *memory) {
    return (void *)(((uintptr_t)memory + PYTHON_ALIGNMENT - 1) & ~(uintptr_t)(PYTHON_ALIGNMENT - 1));
}

static inline int python_fits(const python_state_t *state, const array_t *rows) {
    return rows->head.type == PYTHON.array_type && (rows->dtype == PYTHON.float32 || rows->dtype == state->float64) &&
           rows->dimensions == 2 && rows->shape[1] == state->features &&
           (rows->flags & PYTHON_PLAIN_ARRAY) == PYTHON_PLAIN_ARRAY && rows->shape[0] >= 1 &&
           rows->shape[0] <= state->most;
}

#ifdef OUTRIDER_DOUBLE
#define PYTHON_WORKSPACE(wide, batch) ((wide) ? outrider_workspace_double(batch) : outrider_workspace(batch))
#define PYTHON_RUN(wide, ...) ((wide) ? outrider_run_double(__VA_ARGS__) : outrider_run(__VA_ARGS__))
#else
#define PYTHON_WORKSPACE(wide, batch) ((void)(wide), outrider_workspace(batch))
#define PYTHON_RUN(wide, ...) outrider_run(__VA_ARGS__)
#endif

/* A new array of results; NULL where there is no memory, or where the run failed. */
static inline object_t *python_run(python_state_t *state, const array_t *rows) {
    intptr_t batch = rows->shape[0], shape[2] = {batch, state->columns};
    int wide = rows->dtype != PYTHON.float32;
    size_t size;
    void *workspace = python_take(state, PYTHON_WORKSPACE(wide, batch), &size);
    if (!workspace) return NULL;
    PYTHON.retain(PYTHON.float32); /* new_array takes a reference over */
    array_t *result = (array_t *)PYTHON.new_array(PYTHON.array_type, PYTHON.float32, state->columns ? 2 : 1, shape,
                                                  NULL, NULL, 0, NULL);
    if (!result) {
        PYTHON.clear_error();
        PYTHON.free(workspace);
        return NULL;
    }
    const void *inputs[1] = {rows->data};
    void *outputs[1] = {result->data}, *thread = batch >= PYTHON_LONG_BATCH ? PYTHON.unlock() : NULL;
    int32_t status = PYTHON_RUN(wide, inputs, outputs, batch, python_aligned(workspace));
    if (thread) PYTHON.lock(thread);
    python_give_back(state, workspace, size);
    if (!status) return &result->head;
    PYTHON.release(&result->head);
    return NULL;
}

static object_t *python_predict(object_t *self, object_t *x) {
    python_state_t *state = (python_state_t *)PYTHON.bytes(self);
    object_t *result = python_fits(state, (const array_t *)x) ? python_run(state, (const array_t *)x) : NULL;
    return result ? result : PYTHON.call(state->fallback, x);
}

OUTRIDER_API size_t outrider_python_size(void) { return sizeof(python_state_t); }

/* `state`: a bytearray of that size, which the function keeps. `owner`: what must live as long as the function, and
 * keep `fallback` alive: it becomes the function's module. */
OUTRIDER_API object_t *outrider_python(object_t *state, const python_t *python, object_t *owner, object_t *fallback,
                                       intptr_t features, intptr_t columns, intptr_t most) {
    PYTHON = *python;
    python_state_t *made = (python_state_t *)PYTHON.bytes(state);
    *made = (python_state_t){
        .method = {"predict", python_predict, PYTHON_ONE_ARGUMENT,
                   "predict(x)\n--\n\nThe main output for rows of features."},
        .fallback = fallback,
        .features = features,
        .columns = columns,
        .most = most,
    };
    return PYTHON.new_function(&made->method, state, owner);
}

#ifdef OUTRIDER_DOUBLE
/* `float64` is numpy's, which the state does not keep alive. */
OUTRIDER_API void outrider_python_double(object_t *state, object_t *float64) {
    ((python_state_t *)PYTHON.bytes(state))->float64 = float64;
}
#endif

OUTRIDER_API void outrider_python_close(object_t *state) { ((python_state_t *)PYTHON.bytes(state))->most = 0; }

OUTRIDER_API void outrider_python_free(object_t *state) {
    python_state_t *made = (python_state_t *)PYTHON.bytes(state);
    PYTHON.free(made->workspace);
    made->workspace = NULL;
}

#endif
