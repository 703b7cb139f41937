/* refork._heap: make the objects that are alive now immune to reference counts.
 *
 * Forked processes share a page until one of them writes to it, and CPython
 * writes to an object whenever it looks at it: it counts references. Since
 * 3.12 it leaves the count of *immortal* objects alone (PEP 683). This module
 * walks everything that the garbage collector can see, and what hangs on it,
 * and gives each object the count that says "immortal".
 *
 * What must hold for that to be safe, and where this file takes care of it:
 *
 *   - Nobody writes a count half way through: the GIL is held from the first
 *     object to the last, and no Python code runs in between.
 *   - An immortal object is never deallocated. Hence what must be deallocated
 *     to do its duty stays mortal (reason_to_leave).
 *   - An immortal object never looks uniquely referenced. CPython changes
 *     tuples in place while it builds them and refuses to when they look
 *     shared. Hence unfinished tuples stay mortal (may_be_unfinished).
 *   - Interned strings keep their state. A "mortal interned" string with an
 *     immortal count is a case CPython itself knows: interning an immortal
 *     string does not take the two references of the interning table away,
 *     and giving them back at exit skips immortal strings (3.13 on) or adds
 *     two to a count that cannot reach zero any more (3.12). Marking them as
 *     "immortal interned" instead would make 3.13's exit free them.
 *
 * Orchestration (collecting, freezing, reporting) is Python's: see heap.py.
 */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#if defined(PYPY_VERSION) || PY_VERSION_HEX < 0x030C0000
#define OBSTACLE "this interpreter has no immortal objects (CPython 3.12 or later has)"
#elif defined(Py_GIL_DISABLED)
#define OBSTACLE "free-threaded builds count references in another way"
#elif SIZEOF_VOID_P < 8
#define OBSTACLE "32-bit builds are not supported"
#else
#define OBSTACLE NULL
#define CAN_SEAL 1
#endif

#ifdef CAN_SEAL

/* ---- The mark ---------------------------------------------------------- */

#if PY_VERSION_HEX >= 0x030E0000

/* 3.14 on: the count is 32 bits wide, with flags beside it. Py_INCREF leaves
 * counts of 3 << 30 and above alone, Py_DECREF those of 1 << 31 and above. The
 * flag makes the interpreter's stack treat its references as borrowed. */
#define MARK (UINT32_C(3) << 30)
#define IMMORTAL_FLAG 1

static inline bool
is_sealed(PyObject *op)
{
    return op->ob_refcnt >= (UINT32_C(1) << 31);
}

static inline bool
is_unique(PyObject *op)
{
    return op->ob_refcnt == 1;
}

static inline void
set_mark(PyObject *op)
{
    op->ob_refcnt = MARK;
    op->ob_flags |= IMMORTAL_FLAG;
}

static inline void
repair_mark(PyObject *op)
{
    if (op->ob_refcnt < MARK) {
        set_mark(op);
    }
}

#else

/* 3.12 and 3.13: a 64-bit count, of which Py_INCREF reads the low half: it
 * leaves exactly 0xFFFFFFFF alone and writes to every other value, also to
 * those that Py_DECREF takes for immortal (0x80000000 and above). */
#define MARK ((Py_ssize_t)0xFFFFFFFF)

static inline bool
is_sealed(PyObject *op)
{
    return op->ob_refcnt >= ((Py_ssize_t)1 << 31);
}

static inline bool
is_unique(PyObject *op)
{
    return op->ob_refcnt == 1;
}

static inline void
set_mark(PyObject *op)
{
    op->ob_refcnt = MARK;
}

/* Extensions built for the stable ABI of 3.11 and earlier count with plain
 * 64-bit arithmetic and know no immortality, so counts drift off the mark by
 * as many references as such an extension holds. That is harmless (two
 * thousand million operations away from mortality) but costs writes. */
static inline void
repair_mark(PyObject *op)
{
    if (op->ob_refcnt != MARK) {
        set_mark(op);
    }
}

#endif

/* ---- Scratch memory ----------------------------------------------------- */

/* Mapped, not allocated: scratch space in the heap would leave holes in the
 * very pages that are about to be shared. */
typedef struct {
    void **items;
    size_t used;
    size_t room;
} Pointers;

static void **
map_pointers(size_t count)
{
    void *p = mmap(NULL, count * sizeof(void *), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void
unmap_pointers(void **items, size_t count)
{
    if (items != NULL) {
        munmap(items, count * sizeof(void *));
    }
}

static bool
pointers_grow(Pointers *list)
{
    size_t room = list->room ? list->room * 2 : 1 << 16;
    void **items = map_pointers(room);
    if (items == NULL) {
        return false;
    }
    if (list->used) {
        memcpy(items, list->items, list->used * sizeof(void *));
    }
    unmap_pointers(list->items, list->room);
    list->items = items;
    list->room = room;
    return true;
}

static inline bool
pointers_push(Pointers *list, void *p)
{
    if (list->used == list->room && !pointers_grow(list)) {
        return false;
    }
    list->items[list->used++] = p;
    return true;
}

static void
pointers_free(Pointers *list)
{
    unmap_pointers(list->items, list->room);
    *list = (Pointers){0};
}

/* A set of pointers: open addressing, a power of two slots, never shrinks. */
typedef struct {
    void **slots;
    size_t used;
    size_t size;
} PointerSet;

static size_t
set_slot(const PointerSet *set, void *p)
{
    size_t i = ((uintptr_t)p >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 20;
    i &= set->size - 1;
    while (set->slots[i] != NULL && set->slots[i] != p) {
        i = (i + 1) & (set->size - 1);
    }
    return i;
}

static bool
set_grow(PointerSet *set)
{
    PointerSet old = *set;
    size_t size = old.size ? old.size * 2 : 1 << 13;
    void **slots = map_pointers(size);
    if (slots == NULL) {
        return false;
    }
    set->slots = slots;
    set->size = size;
    for (size_t i = 0; i < old.size; i++) {
        if (old.slots[i] != NULL) {
            set->slots[set_slot(set, old.slots[i])] = old.slots[i];
        }
    }
    unmap_pointers(old.slots, old.size);
    return true;
}

static inline bool
set_has(const PointerSet *set, void *p)
{
    return set->used > 0 && set->slots[set_slot(set, p)] == p;
}

/* 1: added, 0: was there already, -1: no memory. */
static int
set_add(PointerSet *set, void *p)
{
    if (set->used * 2 >= set->size && !set_grow(set)) {
        return -1;
    }
    size_t i = set_slot(set, p);
    if (set->slots[i] == p) {
        return 0;
    }
    set->slots[i] = p;
    set->used++;
    return 1;
}

static void
set_free(PointerSet *set)
{
    unmap_pointers(set->slots, set->size);
    *set = (PointerSet){0};
}

/* ---- The state of a walk ------------------------------------------------- */

#define MAX_MORTAL_KINDS 256
#define REASONS 1024

typedef struct {
    PyTypeObject *type;
    const char *why;
    size_t count;
} MortalKind;

typedef struct {
    Pointers roots;       /* what the garbage collector tracks */
    Pointers todo;        /* found on the way, still to be looked into */
    Pointers unmet;       /* roots that nothing but C code may refer to */
    PointerSet seen;      /* looked into, where the mark cannot tell */
    PointerSet spared;    /* what leads to SQLite's statements */
    PyTypeObject *connection;   /* sqlite3.Connection */
    PyTypeObject *ndarray;
    PyObject *ndarray_base;   /* its attribute "base", a C getter */
    size_t objects;
    size_t bytes;
    MortalKind mortal[MAX_MORTAL_KINDS];
    size_t mortal_kinds;
    bool out_of_memory;
    struct {
        PyTypeObject *type;
        const char *why;
    } reasons[REASONS];   /* what reason_to_leave() found, by type */
} Walk;

/* Objects sealed by this process and by those it was forked from: the count
 * is inherited by fork(), as the sealed objects are. */
static size_t total_objects = 0;

static void
walk_free(Walk *walk)
{
    pointers_free(&walk->roots);
    pointers_free(&walk->todo);
    pointers_free(&walk->unmet);
    set_free(&walk->seen);
    set_free(&walk->spared);
}

static void
push(Walk *walk, PyObject *op)
{
    if (!pointers_push(&walk->todo, op)) {
        walk->out_of_memory = true;
    }
}

/* True the first time it is asked about an object. */
static bool
is_new(Walk *walk, PyObject *op)
{
    int added = set_add(&walk->seen, op);
    if (added < 0) {
        walk->out_of_memory = true;
    }
    return added > 0;
}

/* ---- What is left mortal ------------------------------------------------- */

/* Types without a finalizer whose deallocation others notice nevertheless: it
 * unlocks a buffer, closes a descriptor, unwinds a stack. By name, for most are
 * not exported, and of subclasses too. */
static const char *const resources[] = {
    "memoryview", "managedbuffer", "_buffer_wrapper", "_io._BytesIOBuffer",
    "pickle.PickleBuffer", "mmap.mmap", "select.epoll", "sqlite3.Connection",
    "sqlite3.Cursor", "sqlite3.Statement", "sqlite3.Blob", "_dbm.dbm",
    "_gdbm.gdbm", "_multiprocessing.SemLock", "greenlet.greenlet", NULL,
};

static bool
is_resource(PyTypeObject *type)
{
    for (; type != NULL; type = type->tp_base) {
        for (const char *const *name = resources; *name != NULL; name++) {
            if (strcmp(type->tp_name, *name) == 0) {
                return true;
            }
        }
    }
    return false;
}

static const char *
find_reason_to_leave(PyTypeObject *type)
{
    if (type->tp_finalize != NULL || type->tp_del != NULL) {
        return "finalizer";
    }
    if (type == &PyFrame_Type || type == &PyTraceBack_Type) {
        return "frame";
    }
    return is_resource(type) ? "resource" : NULL;
}

static inline const char *
reason_to_leave(Walk *walk, PyTypeObject *type)
{
    size_t i = ((uintptr_t)type >> 4) % REASONS;
    if (walk->reasons[i].type != type) {
        walk->reasons[i].type = type;
        walk->reasons[i].why = find_reason_to_leave(type);
    }
    return walk->reasons[i].why;
}

/* C code may change a tuple or a frozenset in place as long as it holds the
 * only reference, and fails with a SystemError if it does not seem to: that is
 * how tuple(generator) works, and the generator, or another thread, may be the
 * one that seals. No object refers to such a tuple yet; once one does, it is
 * finished. So these are sealed when they are met, not as roots. */
static inline bool
may_be_unfinished(PyObject *op)
{
    return is_unique(op)
           && (PyTuple_CheckExact(op) || PyFrozenSet_CheckExact(op));
}

static void
count_mortal(Walk *walk, PyObject *op, const char *why)
{
    if (!is_new(walk, op)) {
        return;
    }
    for (size_t i = 0; i < walk->mortal_kinds; i++) {
        if (walk->mortal[i].type == Py_TYPE(op) && walk->mortal[i].why == why) {
            walk->mortal[i].count++;
            return;
        }
    }
    if (walk->mortal_kinds < MAX_MORTAL_KINDS) {
        walk->mortal[walk->mortal_kinds++] =
            (MortalKind){.type = Py_TYPE(op), .why = why, .count = 1};
    }
}

/* SQLite keeps a file open until the last statement that was prepared for it is
 * gone, whoever has closed the connection. A connection holds its statements in
 * a functools.lru_cache: so the cache stays mortal, with its dict and its links. */
static void
spare(Walk *walk, PyObject *op)
{
    if (set_add(&walk->spared, op) < 0) {
        walk->out_of_memory = true;
    }
}

static inline bool
is_named(PyObject *op, const char *name)
{
    return strcmp(Py_TYPE(op)->tp_name, name) == 0;
}

static int
spare_link(PyObject *part_of_dict, void *walk)
{
    if (is_named(part_of_dict, "functools._lru_list_elem")) {
        spare(walk, part_of_dict);
    }
    return 0;
}

static int
spare_dict(PyObject *part_of_cache, void *walk)
{
    if (PyDict_CheckExact(part_of_cache)) {
        spare(walk, part_of_cache);
        PyDict_Type.tp_traverse(part_of_cache, spare_link, walk);
    }
    return 0;
}

static int
spare_cache(PyObject *part_of_connection, void *walk)
{
    if (is_named(part_of_connection, "functools._lru_cache_wrapper")) {
        spare(walk, part_of_connection);
        Py_TYPE(part_of_connection)->tp_traverse(part_of_connection, spare_dict, walk);
    }
    return 0;
}

static void
spare_statements(Walk *walk)
{
    for (size_t i = 0; walk->connection != NULL && i < walk->roots.used; i++) {
        PyObject *op = walk->roots.items[i];
        PyTypeObject *type = Py_TYPE(op);
        if (reason_to_leave(walk, type) != NULL
            && PyType_IsSubtype(type, walk->connection)) {
            type->tp_traverse(op, spare_cache, walk);
        }
    }
}

/* ---- How large an object is (where that is cheap to know) ----------------- */

static inline size_t
size_of_string(PyObject *op)
{
    size_t head = PyUnicode_IS_COMPACT_ASCII(op) ? sizeof(PyASCIIObject)
                                                 : sizeof(PyCompactUnicodeObject);
    return head + (size_t)(PyUnicode_GET_LENGTH(op) + 1) * PyUnicode_KIND(op);
}

static inline size_t
size_of(PyObject *op, PyTypeObject *type)
{
    size_t size = (size_t)type->tp_basicsize;
    if (PyType_HasFeature(type, Py_TPFLAGS_HAVE_GC)) {
        size += 2 * sizeof(void *);
    }
    if (PyUnicode_CheckExact(op)) {
        return size_of_string(op);
    }
    if (type == &PyBytes_Type || type == &PyTuple_Type) {
        return size + (size_t)(Py_SIZE(op) * type->tp_itemsize);
    }
    if (type == &PyList_Type) {
        return size + (size_t)((PyListObject *)op)->allocated * sizeof(void *);
    }
    if (type == &PyDict_Type) {
        return size + (size_t)((PyDictObject *)op)->ma_used * 3 * sizeof(void *);
    }
    return size;
}

/* ---- Meeting an object ---------------------------------------------------- */

static inline bool
is_static_type(PyObject *op)
{
    return PyType_Check(op)
           && !PyType_HasFeature((PyTypeObject *)op, Py_TPFLAGS_HEAPTYPE);
}

/* Also subclasses, unless they export buffers in a way of their own: that may
 * be Python code, and none may run. */
static inline bool
is_ndarray(Walk *walk, PyTypeObject *type)
{
    if (walk->ndarray == NULL || type->tp_as_buffer == NULL) {
        return false;
    }
    PyBufferProcs *theirs = type->tp_as_buffer;
    PyBufferProcs *numpys = walk->ndarray->tp_as_buffer;
    return theirs->bf_getbuffer == numpys->bf_getbuffer
           && theirs->bf_releasebuffer == numpys->bf_releasebuffer;
}

/* Containers that can change after they were sealed without ever becoming a
 * root: dicts that hold nothing the collector cares for are not tracked before
 * 3.14, and numpy's arrays never are. Met again, they are looked into again. */
static inline bool
may_have_changed(Walk *walk, PyObject *op, PyTypeObject *type)
{
    if (type == &PyDict_Type) {
        return !PyObject_GC_IsTracked(op);
    }
    return is_ndarray(walk, type);
}

/* Tracked objects are roots and get their turn; leaves have nothing inside. */
static inline bool
must_be_looked_into(Walk *walk, PyObject *op, PyTypeObject *type)
{
    if (PyType_HasFeature(type, Py_TPFLAGS_HAVE_GC)) {
        return type->tp_traverse != NULL && !PyObject_GC_IsTracked(op)
               && !is_static_type(op);
    }
    return type == &PyCode_Type || is_ndarray(walk, type);
}

/* A string keeps its hash from the first time that somebody asks for it: to use
 * it as a key, or in a set, is to write to it. Asking now makes that a read. */
static inline void
settle_hash(PyObject *op, PyTypeObject *type)
{
    if (type == &PyUnicode_Type || type == &PyBytes_Type) {
        (void)PyObject_Hash(op);
    }
}

static void
seal_object(Walk *walk, PyObject *op, PyTypeObject *type)
{
    settle_hash(op, type);
    set_mark(op);
    walk->objects++;
    walk->bytes += size_of(op, type);
}

/* The visitproc. Strings, numbers and bytes end here. */
static int
meet(PyObject *op, void *arg)
{
    Walk *walk = arg;
    if (op == NULL) {
        return 0;
    }
    PyTypeObject *type = Py_TYPE(op);
    if (is_sealed(op)) {
        repair_mark(op);
        if (may_have_changed(walk, op, type) && is_new(walk, op)) {
            push(walk, op);
        }
        return 0;
    }
    if (set_has(&walk->spared, op)) {
        return 0;
    }
    const char *why = reason_to_leave(walk, type);
    if (why != NULL) {
        count_mortal(walk, op, why);
        return 0;
    }
    seal_object(walk, op, type);
    if (must_be_looked_into(walk, op, type)) {
        push(walk, op);
    }
    return 0;
}

/* ---- Looking into an object ----------------------------------------------- */

/* Code objects are not known to the collector, so no tp_traverse leads on. */
static void
look_into_code(Walk *walk, PyCodeObject *code)
{
    PyObject *parts[] = {
        code->co_consts, code->co_names, code->co_exceptiontable,
        code->co_localsplusnames, code->co_localspluskinds, code->co_filename,
        code->co_name, code->co_qualname, code->co_linetable,
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(parts); i++) {
        meet(parts[i], walk);
    }
    if (code->_co_cached != NULL) {
        meet(code->_co_cached->_co_code, walk);
        meet(code->_co_cached->_co_varnames, walk);
        meet(code->_co_cached->_co_cellvars, walk);
        meet(code->_co_cached->_co_freevars, walk);
    }
}

/* type_traverse() refuses static types: they are no business of the collector.
 * The methods' tuples and dicts are ours all the same. */
static void
look_into_static_type(Walk *walk, PyTypeObject *type)
{
    PyObject *dict = PyType_GetDict(type);
    meet((PyObject *)type, walk);
    meet(dict, walk);
    meet(type->tp_bases, walk);
    meet(type->tp_mro, walk);
    Py_XDECREF(dict);
}

static void
look_into_heap_type(Walk *walk, PyHeapTypeObject *type)
{
    meet(type->ht_name, walk);
    meet(type->ht_qualname, walk);
    meet(type->ht_slots, walk);
}

/* dict_traverse() skips the keys where all of them are strings. */
static void
look_into_keys(Walk *walk, PyObject *dict)
{
    PyObject *key, *value;
    Py_ssize_t i = 0;
    while (PyDict_Next(dict, &i, &key, &value)) {
        meet(key, walk);
    }
}

static void
look_into_function(Walk *walk, PyFunctionObject *function)
{
    meet(function->func_code, walk);
    meet(function->func_name, walk);
    meet(function->func_qualname, walk);
}

static void
look_into_view(Walk *walk, Py_buffer *view)
{
    Py_ssize_t at[PyBUF_MAX_NDIM] = {0};
    for (Py_ssize_t left = view->len / view->itemsize; left > 0; left--) {
        char *item = PyBuffer_GetPointer(view, at);
        meet(*(PyObject **)item, walk);
        for (int d = view->ndim - 1; d >= 0; d--) {
            if (++at[d] < view->shape[d]) {
                break;
            }
            at[d] = 0;
        }
    }
}

/* numpy tells the collector nothing about arrays of objects, but it tells the
 * buffer protocol: such a buffer is an array of PyObject *. */
static void
look_into_ndarray(Walk *walk, PyObject *array)
{
    Py_buffer view;
    PyObject *getter = walk->ndarray_base;
    PyObject *base = Py_TYPE(getter)->tp_descr_get(
        getter, array, (PyObject *)Py_TYPE(array));
    if (base != NULL) {
        meet(base, walk);
        Py_DECREF(base);
    }
    if (PyObject_GetBuffer(array, &view, PyBUF_FULL_RO) == 0) {
        if (view.format != NULL && strcmp(view.format, "O") == 0
            && view.shape != NULL && view.itemsize == sizeof(PyObject *)) {
            look_into_view(walk, &view);
        }
        PyBuffer_Release(&view);
    }
    PyErr_Clear();   /* dates and the like have no buffer: nothing to find */
}

static void
look_into(Walk *walk, PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    if (PyType_HasFeature(type, Py_TPFLAGS_HAVE_GC) && type->tp_traverse) {
        type->tp_traverse(op, meet, walk);
    }
    if (PyDict_Check(op)) {
        look_into_keys(walk, op);
    }
    else if (type == &PyCode_Type) {
        look_into_code(walk, (PyCodeObject *)op);
    }
    else if (type == &PyFunction_Type) {
        look_into_function(walk, (PyFunctionObject *)op);
    }
    else if (PyType_Check(op)) {
        look_into_heap_type(walk, (PyHeapTypeObject *)op);
    }
    else if (is_ndarray(walk, type)) {
        look_into_ndarray(walk, op);
    }
}

static void
look_into_all_found(Walk *walk)
{
    while (walk->todo.used > 0 && !walk->out_of_memory) {
        look_into(walk, walk->todo.items[--walk->todo.used]);
    }
}

/* ---- The roots ------------------------------------------------------------ */

static int
add_root(PyObject *op, void *arg)
{
    Walk *walk = arg;
    if (!pointers_push(&walk->roots, op)) {
        walk->out_of_memory = true;
        return 0;
    }
    return 1;
}

/* Roots are collected first and looked into afterwards, because the collector
 * holds a reference to each one while it shows it: counts would look wrong. */
static void
seal_roots(Walk *walk)
{
    PyUnstable_GC_VisitObjects(add_root, walk);
    spare_statements(walk);
    for (size_t i = 0; i < walk->roots.used && !walk->out_of_memory; i++) {
        PyObject *op = walk->roots.items[i];
        if (i + 8 < walk->roots.used) {
            __builtin_prefetch(walk->roots.items[i + 8], 1);
        }
        if (!may_be_unfinished(op)) {
            meet(op, walk);
        }
        else if (!pointers_push(&walk->unmet, op)) {
            walk->out_of_memory = true;
        }
        look_into(walk, op);
        look_into_all_found(walk);
    }
}

static void
count_unmet(Walk *walk)
{
    for (size_t i = 0; i < walk->unmet.used; i++) {
        PyObject *op = walk->unmet.items[i];
        if (!is_sealed(op)) {
            count_mortal(walk, op, "held by C code or a running frame only");
        }
    }
}

/* Every type in the process, by way of __subclasses__(): the collector does
 * not know the static ones. Runs before anything is marked, as it makes and
 * drops lists. The types stay alive: others hold them, and no code runs. */
static bool
find_static_types(Walk *walk, Pointers *found)
{
    push(walk, (PyObject *)&PyBaseObject_Type);
    while (walk->todo.used > 0 && !walk->out_of_memory) {
        PyObject *type = walk->todo.items[--walk->todo.used];
        if (!is_new(walk, type)) {
            continue;
        }
        if (is_static_type(type) && !pointers_push(found, type)) {
            return false;
        }
        PyObject *subclasses = PyObject_CallMethod(
            (PyObject *)&PyType_Type, "__subclasses__", "O", type);
        if (subclasses == NULL) {
            return false;
        }
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(subclasses); i++) {
            push(walk, PyList_GET_ITEM(subclasses, i));
        }
        Py_DECREF(subclasses);
    }
    return !walk->out_of_memory;
}

static void
seal_static_types(Walk *walk, Pointers *types)
{
    for (size_t i = 0; i < types->used && !walk->out_of_memory; i++) {
        look_into_static_type(walk, types->items[i]);
        look_into_all_found(walk);
    }
}

/* An attribute of a module that the application uses, if it does. */
static PyObject *
find_loaded(const char *module_name, const char *attribute)
{
    PyObject *name = PyUnicode_FromString(module_name);
    PyObject *module = name ? PyImport_GetModule(name) : NULL;
    PyObject *found = module ? PyObject_GetAttrString(module, attribute) : NULL;
    Py_XDECREF(name);
    Py_XDECREF(module);
    PyErr_Clear();
    return found;
}

/* What is found is borrowed: the module goes on holding it. */
static void
find_ndarray(Walk *walk)
{
    PyObject *type = find_loaded("numpy", "ndarray");
    if (type != NULL && PyType_Check(type)
        && ((PyTypeObject *)type)->tp_as_buffer != NULL
        && ((PyTypeObject *)type)->tp_as_buffer->bf_getbuffer != NULL) {
        PyObject *getter = PyObject_GetAttrString(type, "base");
        if (getter != NULL && Py_IS_TYPE(getter, &PyGetSetDescr_Type)) {
            walk->ndarray = (PyTypeObject *)type;
            walk->ndarray_base = getter;
        }
        Py_XDECREF(getter);
        PyErr_Clear();
    }
    Py_XDECREF(type);
}

static void
find_connection(Walk *walk)
{
    PyObject *type = find_loaded("_sqlite3", "Connection");
    if (type != NULL && PyType_Check(type)) {
        walk->connection = (PyTypeObject *)type;
    }
    Py_XDECREF(type);
}

/* ---- The module's functions ----------------------------------------------- */

static PyObject *
mortal_kinds_as_list(Walk *walk)
{
    PyObject *list = PyList_New((Py_ssize_t)walk->mortal_kinds);
    for (size_t i = 0; list != NULL && i < walk->mortal_kinds; i++) {
        MortalKind *kind = &walk->mortal[i];
        PyObject *item = Py_BuildValue("(Osn)", kind->type, kind->why,
                                       (Py_ssize_t)kind->count);
        if (item == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    return list;
}

/* A half sealed heap is a correct heap, so running out of scratch memory only
 * means that less is shared. */
static PyObject *
result_of(Walk *walk)
{
    PyObject *mortal = mortal_kinds_as_list(walk);
    if (mortal == NULL) {
        return NULL;
    }
    return Py_BuildValue("(nnNO)", (Py_ssize_t)walk->objects,
                         (Py_ssize_t)walk->bytes, mortal,
                         walk->out_of_memory ? Py_False : Py_True);
}

static PyObject *
heap_walk(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    Walk *walk = PyMem_RawCalloc(1, sizeof(Walk));
    if (walk == NULL) {
        return PyErr_NoMemory();
    }
    Pointers types = {0};
    PyObject *result = NULL;
    find_ndarray(walk);
    find_connection(walk);
    if (find_static_types(walk, &types)) {
        seal_static_types(walk, &types);
        seal_roots(walk);
        count_unmet(walk);
        total_objects += walk->objects;
        result = result_of(walk);
    }
    else if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    pointers_free(&types);
    walk_free(walk);
    PyMem_RawFree(walk);
    return result;
}

/* pymalloc cuts pools of 16 KiB into blocks of one size. At the start of each
 * stands how many of its blocks are taken (3.12 to 3.15). */
#define POOL_MASK (~(uintptr_t)((1 << 14) - 1))
#define LARGEST_BLOCK 512
#define ROOM_FOR_AN_ARENA ((size_t)4 << 20)   /* one has 1 or 2 MiB */

static unsigned int
blocks_in_pool_of(void *block)
{
    return *(unsigned int *)((uintptr_t)block & POOL_MASK);
}

/* Not declared by the public headers from 3.13 on, but exported. */
extern const char *_PyMem_GetCurrentAllocatorName(void) __attribute__((weak));

static bool
uses_pymalloc(void)
{
    const char *name = _PyMem_GetCurrentAllocatorName
                           ? _PyMem_GetCurrentAllocatorName() : NULL;
    return name != NULL && strcmp(name, "pymalloc") == 0;
}

/* Where the process may have no more memory, pymalloc passes on to malloc(),
 * whose blocks lie in no pool. All sizes together need one new arena at most. */
static bool
has_room_for_an_arena(void)
{
    void *room = mmap(NULL, ROOM_FOR_AN_ARENA, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return room != MAP_FAILED && munmap(room, ROOM_FOR_AN_ARENA) == 0;
}

/* Take every free block of one size. One that comes alone in its pool comes
 * from a fresh pool: there are no more holes, and it goes back. */
static size_t
fill_holes_of_size(size_t size)
{
    size_t filled = 0;
    for (;;) {
        void *block = PyObject_Malloc(size);
        if (block == NULL) {
            return filled;
        }
        if (blocks_in_pool_of(block) == 1) {
            PyObject_Free(block);
            return filled;
        }
        filled += size;
    }
}

static size_t
fill_holes_of_pymalloc(void)
{
    size_t filled = 0;
    if (!uses_pymalloc() || !has_room_for_an_arena()) {
        return 0;
    }
    for (size_t size = 16; size <= LARGEST_BLOCK; size += 16) {
        filled += fill_holes_of_size(size);
    }
    return filled;
}

#if defined(__GLIBC__)

/* The C library's malloc has holes as well: what is larger than pymalloc's
 * blocks lies there, and what C libraries keep. Holes with whole pages in them
 * are left open: such pages are not resident after malloc_trim(), so what is
 * put there costs no copy. */
#define SMALLEST_CHUNK 24
#define LARGEST_FILLED 4088
#define LARGEST_HELD 65528   /* below every threshold for mapping apart */

typedef struct {
    uintptr_t start;    /* the main arena: what lies in it is a hole, ... */
    uintptr_t top;      /* ... what lies above is memory never used before */
    size_t budget;      /* an end to it all, should either be wrong */
} Holes;

#if __GLIBC_PREREQ(2, 33)

static struct mallinfo2
look_up_totals(void)
{
    return mallinfo2();
}

#else

/* Wheels are built with a C library that does not have it yet, and mostly run
 * with one that has. The older call counts in ints: they wrap at 4 GiB. */
struct mallinfo2 {
    size_t arena, ordblks, smblks, hblks, hblkhd;
    size_t usmblks, fsmblks, uordblks, fordblks, keepcost;
};
extern struct mallinfo2 mallinfo2(void) __attribute__((weak));

static struct mallinfo2
look_up_totals(void)
{
    if (mallinfo2 != NULL) {
        return mallinfo2();
    }
    struct mallinfo info = mallinfo();
    return (struct mallinfo2){
        .arena = (unsigned)info.arena, .uordblks = (unsigned)info.uordblks,
        .fordblks = (unsigned)info.fordblks, .keepcost = (unsigned)info.keepcost,
    };
}

#endif

static void
look_at_malloc(Holes *holes, size_t *used)
{
    struct mallinfo2 info = look_up_totals();
    uintptr_t end = (uintptr_t)sbrk(0);
    holes->top = end - info.keepcost;
    holes->start = end - info.arena;
    holes->budget = info.fordblks + (1 << 20);
    *used = info.uordblks;
}

/* False if malloc() is somebody else's (jemalloc, a sanitizer), of which what
 * the C library tells about its own says nothing. */
static bool
find_holes(Holes *holes)
{
    size_t before, after;
    look_at_malloc(holes, &before);
    void *probe = malloc(LARGEST_HELD);
    look_at_malloc(holes, &after);
    free(probe);
    look_at_malloc(holes, &before);
    return probe != NULL && after >= before + LARGEST_HELD;
}

/* A block that closes a hole, or NULL if there is no hole of the size. */
static void *
close_hole(Holes *holes, size_t size)
{
    void *block = malloc(size);
    uintptr_t at = (uintptr_t)block;
    if (block != NULL && at >= holes->start && at < holes->top
        && holes->budget > size) {
        holes->budget -= size;
        return block;
    }
    free(block);
    return NULL;
}

/* From large to small, so that the rest of a hole is filled later on. The
 * large ones are taken out of the way meanwhile. */
static size_t
fill_holes_of_malloc(void)
{
    Holes holes;
    if (!find_holes(&holes)) {
        return 0;
    }
    size_t filled = 0;
    void **held = NULL, **block;
    for (size_t size = LARGEST_HELD; size > LARGEST_FILLED; size /= 2) {
        while ((block = close_hole(&holes, size)) != NULL) {
            *block = held;
            held = block;
        }
    }
    for (size_t size = LARGEST_FILLED; size >= SMALLEST_CHUNK; size -= 16) {
        while (close_hole(&holes, size) != NULL) {
            filled += size;
        }
    }
    while ((block = held) != NULL) {
        held = *block;
        free(block);
    }
    malloc_trim(0);
    return filled;
}

#else

static size_t
fill_holes_of_malloc(void)
{
    return 0;
}

#endif

/* The types' cache of looked-up attributes is the only owner of many a name.
 * Such names are not sealed, as nothing leads to them; each would leave a new
 * hole when another lookup takes its place in the cache of a worker. */
static PyObject *
heap_fill_holes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    PyType_ClearCache();
    size_t filled = fill_holes_of_pymalloc();
    return PyLong_FromSize_t(filled + fill_holes_of_malloc());
}

static PyObject *
heap_is_sealed(PyObject *Py_UNUSED(module), PyObject *op)
{
    return PyBool_FromLong(is_sealed(op));
}

static PyObject *
heap_total_objects(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromSize_t(total_objects);
}

/* Another interpreter's objects may be reached through shared ones, and its
 * thread may run while ours walks. */
static const char *
find_obstacle(void)
{
    PyInterpreterState *main = PyInterpreterState_Main();
    if (PyInterpreterState_Get() != main || PyInterpreterState_Head() != main
        || PyInterpreterState_Next(main) != NULL) {
        return "there are sub-interpreters";
    }
    return "";
}

#else   /* !CAN_SEAL */

static PyObject *
refuse(void)
{
    PyErr_SetString(PyExc_RuntimeError, OBSTACLE);
    return NULL;
}

static PyObject *
heap_walk(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return refuse();
}

static PyObject *
heap_fill_holes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromLong(0);
}

static PyObject *
heap_is_sealed(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(op))
{
    Py_RETURN_FALSE;
}

static PyObject *
heap_total_objects(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromLong(0);
}

static const char *
find_obstacle(void)
{
    return OBSTACLE;
}

#endif

static PyObject *
heap_obstacle(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyUnicode_FromString(find_obstacle());
}

/* Free memory at the top and in the middle of malloc's heap: whole pages of it
 * go back to the kernel instead of being shared first and copied later. */
static PyObject *
heap_trim(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
    Py_RETURN_NONE;
}

static PyMethodDef heap_methods[] = {
    {"walk", heap_walk, METH_NOARGS,
     "walk() -> (objects, bytes, [(type, why mortal, count)], complete)"},
    {"fill_holes", heap_fill_holes, METH_NOARGS,
     "fill_holes() -> bytes of free blocks taken out of partly used pools"},
    {"trim", heap_trim, METH_NOARGS,
     "trim() gives malloc's free pages back to the kernel"},
    {"obstacle", heap_obstacle, METH_NOARGS,
     "obstacle() -> why this interpreter cannot be sealed, or ''"},
    {"is_sealed", heap_is_sealed, METH_O,
     "is_sealed(object) -> whether its reference count is out of use"},
    {"total_objects", heap_total_objects, METH_NOARGS,
     "total_objects() -> objects sealed here and in the ancestors"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot heap_slots[] = {
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},   /* it only refuses there */
#endif
    {0, NULL},
};

static struct PyModuleDef heap_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "refork._heap",
    .m_doc = "Makes live objects immune to reference counting; see refork.heap.",
    .m_slots = heap_slots,
    .m_methods = heap_methods,
};

PyMODINIT_FUNC
PyInit__heap(void)
{
    return PyModuleDef_Init(&heap_module);
}
