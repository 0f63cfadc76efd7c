// What this executable is when it is not the warden: two kinds of init, both of them over before the Go runtime would
// start. So they cost the few hundred kilobytes of a C program: the rest of the file is never read.

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
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

// namespace_init is the init of a sandbox's shared pid namespace: it reaps, and ends on SIGTERM.
static void namespace_init(void)
{
	sigset_t set;

	prctl(PR_SET_NAME, "slipway-init", 0, 0, 0);
	// Only standard streams may have come along, and they lead to the warden's log: let go of them.
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
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
