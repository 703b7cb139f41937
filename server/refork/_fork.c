/* Fork a process whose parent is this process's subreaper, for the price of one fork.
 *
 * The usual way is to fork twice and let the process between the two end.  Its
 * price is a second copy of the page tables: some 20 ms for each GiB of heap.
 * The process in between needs no memory of its own, so it is made by vfork():
 * it borrows the address space, forks, and ends, while the caller waits.
 *
 * fork() in a vfork()ed child is not POSIX.  On Linux it is an ordinary fork of
 * the borrowed address space: the child gets a copy of it, with this stack and
 * with the thread id that the C library writes for it, and knows nothing of the
 * borrower.  What the C library locks before and unlocks after the fork is
 * locked and unlocked in the same, shared memory.
 *
 * That memory is why the borrower's death is the caller's: a borrower that is
 * killed half-way may leave a lock of the C library held, for which the caller
 * would wait for ever at its next malloc().
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* The caller's exit status when its borrower was killed (EX_SOFTWARE, sysexits.h). */
#define CUT_SHORT 70

/* The exit status of the borrower when it could not fork: errno fits in it. */
static pid_t
borrow_and_fork(void)
{
    pid_t borrower = vfork();
    if (borrower != 0) {
        return borrower;
    }
    /* Should it be stopped or starved, it must not outlive the caller. */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    pid_t child = fork();
    if (child != 0) {
        _exit(child < 0 ? errno : 0);
    }
    return 0;
}

/* Return 0, or why the borrower could not fork.  Nothing here needs a lock. */
static int
wait_for(pid_t borrower)
{
    int status;
    pid_t ended;
    do {
        ended = waitpid(borrower, &status, 0);
    } while (ended < 0 && errno == EINTR);
    if (ended < 0) { /* ECHILD: the application ignores SIGCHLD, so nobody may know */
        return errno == ECHILD ? 0 : errno;
    }
    if (!WIFEXITED(status)) {
        _exit(CUT_SHORT);
    }
    return WEXITSTATUS(status);
}

PyDoc_STRVAR(fork_away_doc,
"fork_away() -> bool\n"
"\n"
"Fork a process that is re-parented at once to the nearest subreaper among\n"
"this process's ancestors (prctl(2)).  False in the new process, True in this\n"
"one.  Hooks of os.register_at_fork() run as they do for os.fork().\n"
"\n"
"Raises OSError when the kernel cannot fork.  When the process in between is\n"
"killed, this one ends with the status CUT_SHORT: they share their memory.");

static PyObject *
fork_away(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_RuntimeError, "only the main interpreter can fork");
        return NULL;
    }
    PyOS_BeforeFork();
    pid_t borrower = borrow_and_fork();
    int error = borrower < 0 ? errno : 0;
    if (borrower == 0) {
        PyOS_AfterFork_Child();
        Py_RETURN_FALSE;
    }
    if (borrower > 0) {
        error = wait_for(borrower);
    }
    PyOS_AfterFork_Parent();
    if (error != 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_TRUE;
}

static PyMethodDef methods[] = {
    {"fork_away", fork_away, METH_NOARGS, fork_away_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "refork._fork",
    .m_doc = "Fork a process that belongs to the subreaper.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__fork(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddIntMacro(made, CUT_SHORT) < 0) {
        Py_CLEAR(made);
    }
    return made;
}
