// What this executable is when it is not the warden: two kinds of init, both of them over before the Go runtime would
// start. So they cost the few hundred kilobytes of a C program: the rest of the file is never read.

#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOT_EXECUTABLE 126
#define NOT_FOUND 127

// reap_all reaps what has ended, and returns whether child is among it, with how it ended.
static int reap_all(pid_t child, int *status)
{
	int found = 0, st = 0;
	pid_t pid;

	while ((pid = waitpid(-1, &st, WNOHANG)) > 0) {
		if (pid == child) {
			*status = st;
			found = 1;
		}
	}
	return found;
}

// fail tells the warden, which reads standard error until it is closed, and ends.
static void fail(const char *what)
{
	dprintf(STDERR_FILENO, "%s: %s", what, strerror(errno));
	_exit(1);
}

// leave_root makes an empty, read-only directory the root of this process, and lets go of every other mount.
static void leave_root(void)
{
	if (unshare(CLONE_NEWNS) < 0)
		fail("unshare the mount namespace");
	// A slave: where the old root cannot be left altogether, it must not keep what the machine unmounts.
	if (mount("", "/", "", MS_REC | MS_SLAVE, "") < 0)
		fail("stop the propagation of mounts");
	if (mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=555") < 0 || chdir("/proc") < 0)
		fail("mount an empty root");
	if (syscall(SYS_pivot_root, ".", ".") == 0) {
		if (umount2(".", MNT_DETACH) < 0)
			fail("leave the old root");
	} else if (mount(".", "/", "", MS_MOVE, "") < 0 || chroot(".") < 0) { // a root in the initial ramfs cannot be pivoted
		fail("enter the empty root");
	}
	if (chdir("/") < 0)
		fail("enter the empty root");
	mount("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, ""); // nobody could write there anyhow
}

#if defined(__x86_64__)
#define OWN_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OWN_ARCH AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
#define OWN_ARCH AUDIT_ARCH_RISCV64
#endif

// filter_calls leaves this process nothing but to wait, to reap, to let go and to end.
static void filter_calls(void)
{
#ifdef OWN_ARCH
#define ALLOW(call) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
	struct sock_filter rules[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCH, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(SYS_rt_sigtimedwait), ALLOW(SYS_wait4), ALLOW(SYS_exit_group), ALLOW(SYS_exit),
		ALLOW(SYS_rt_sigreturn), ALLOW(SYS_restart_syscall), ALLOW(SYS_close),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	};
	struct sock_fprog program = { sizeof(rules) / sizeof(rules[0]), rules };

	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) < 0)
		fail("set the seccomp filter");
#endif
}

#define NOBODY 65534

// confine takes everything from a process that containers can see, and those that may trace others can even take over: the
// machine's files, namespaces, capabilities and system calls. Standard error is still open.
static void confine(void)
{
	// The sandbox's other namespaces came as descriptors.
	for (int fd = 3; setns(fd, 0) == 0; fd++)
		close(fd);
	if (errno != EBADF)
		fail("join the namespaces of the sandbox");
	leave_root();
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
			fail("drop capabilities");
	if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
		fail("become nobody");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		fail("renounce privileges");
}

// namespace_init is the init of a sandbox's shared pid namespace: it reaps, and ends on SIGTERM.
static void namespace_init(void)
{
	sigset_t set;

	prctl(PR_SET_NAME, "slipway-init", 0, 0, 0);
	confine();
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	filter_calls();
	for (int fd = 0; fd < 3; fd++) // the end of standard error says that all is well
		close(fd);
	for (;;) {
		int sig = 0;

		reap_all(0, NULL);
		if (sigwait(&set, &sig) == 0 && sig == SIGTERM)
			_exit(0);
	}
}

// run_command replaces the calling child by the command, in a process group of its own, which has the terminal if there is
// one: a shell wants both.
static void run_command(char **argv, const sigset_t *mask)
{
	setpgid(0, 0);
	tcsetpgrp(STDIN_FILENO, getpgrp()); // SIGTTOU is blocked still
	sigprocmask(SIG_SETMASK, mask, NULL);
	execvp(argv[0], argv);
	int err = errno;
	dprintf(STDERR_FILENO, "docker-init: exec %s: %s\n", argv[0], strerror(err));
	_exit(err == ENOENT ? NOT_FOUND : NOT_EXECUTABLE);
}

// container_init is what "docker run --init" puts before the command: it passes signals on to the command, reaps whatever
// else ends, and ends as the command does.
static void container_init(int argc, char **argv)
{
	// Those are about this process alone.
	static const int own[] = { SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGABRT, SIGTRAP, SIGSYS };
	sigset_t set, old;
	int first = argc > 1 && strcmp(argv[1], "--") == 0 ? 2 : 1;

	if (argc <= first) {
		dprintf(STDERR_FILENO, "usage: docker-init -- COMMAND [ARGUMENT...]\n");
		_exit(NOT_FOUND);
	}
	sigfillset(&set);
	for (unsigned i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(&set, own[i]);
	sigprocmask(SIG_SETMASK, &set, &old);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); // in a shared pid namespace it is not process 1
	pid_t child = fork();
	if (child < 0) {
		dprintf(STDERR_FILENO, "docker-init: fork: %s\n", strerror(errno));
		_exit(NOT_EXECUTABLE);
	}
	if (child == 0)
		run_command(argv + first, &old);
	for (;;) {
		int sig = 0, status = 0;

		if (sigwait(&set, &sig) != 0)
			continue;
		if (sig != SIGCHLD) {
			kill(child, sig);
			continue;
		}
		if (reap_all(child, &status))
			_exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
	}
}

// The C library passes main's arguments to constructors.
__attribute__((constructor)) static void slipway_init(int argc, char **argv)
{
	const char *program = (const char *)getauxval(AT_EXECFN);
	const char *slash = program ? strrchr(program, '/') : NULL;

	if (getenv("_SLIPWAY_REAPER") != NULL)
		namespace_init();
	if (slash && strcmp(slash + 1, "docker-init") == 0)
		container_init(argc, argv);
}
