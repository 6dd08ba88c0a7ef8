/*
 * A QEMU process with a halted vCPU, driven over its qtest and QMP sockets
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-device.h"
#include "bench-qtest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Seconds in which QEMU has to answer, and to end; guards, not measures */
#define ANSWER_SECONDS  180     /* resets wait for full and slow queues */
#define END_SECONDS     10

static void set_error(BenchQtest *qt, const char *what)
{
    if (!qt->error) {
        qt->error = g_strdup(what);
    }
}

/* Starting */

/*
 * Firmware that halts the vCPU at its first instruction, for a QEMU without
 * the qtest accelerator.  Returns a descriptor that QEMU inherits, or -1.
 */
static int make_firmware(void)
{
    static const uint8_t reset_vector[] = { 0xfa, 0xf4, 0xeb, 0xfd };
    const unsigned size = 64 * 1024;
    int fd = memfd_create("firmware", 0);

    if (fd >= 0 && (ftruncate(fd, size) < 0 ||
                    pwrite(fd, reset_vector, sizeof(reset_vector),
                           size - 16) != sizeof(reset_vector))) {
        close(fd);
        return -1;
    }
    return fd;
}

static char **full_argv(char **argv, const BenchMemory *mem, int qtest_fd,
                        int qmp_fd, int firmware_fd)
{
    GPtrArray *args = g_ptr_array_new();
    uint64_t mib = mem->size >> 20;

    for (unsigned i = 0; argv[i]; i++) {
        g_ptr_array_add(args, g_strdup(argv[i]));
    }
#define ADD(...) g_ptr_array_add(args, g_strdup_printf(__VA_ARGS__))
    ADD("%s", "-nodefaults");
    ADD("%s", "-display");
    ADD("%s", "none");
    ADD("%s", "-accel");
    ADD("%s", "qtest");
    ADD("%s", "-accel");
    ADD("%s", "tcg");
    ADD("%s", "-bios");
    ADD("/proc/self/fd/%d", firmware_fd);
    ADD("%s", "-machine");
    ADD("%s", "pc,memory-backend=bench-ram");
    ADD("%s", "-m");
    ADD("%" G_GUINT64_FORMAT "M", mib);
    ADD("%s", "-object");
    ADD("memory-backend-file,id=bench-ram,share=on,size=%" G_GUINT64_FORMAT
        "M,mem-path=/proc/self/fd/%d", mib, mem->fd);
    ADD("%s", "-chardev");
    ADD("socket,id=bench-qtest,fd=%d", qtest_fd);
    ADD("%s", "-object");
    ADD("%s", "qtest,id=bench-qtest,chardev=bench-qtest,log=none");
    ADD("%s", "-chardev");
    ADD("socket,id=bench-qmp,fd=%d", qmp_fd);
    ADD("%s", "-mon");
    ADD("%s", "chardev=bench-qmp,mode=control");
#undef ADD
    g_ptr_array_add(args, NULL);
    return (char **)g_ptr_array_free(args, FALSE);
}

/* In the child: only async-signal-safe calls */
static void run_qemu(char **argv, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(127);
    }
    /* What the caller reads from us is not for QEMU to write to. */
    dup2(STDERR_FILENO, STDOUT_FILENO);
    close(STDIN_FILENO);
    open("/dev/null", O_RDONLY);
    execvp(argv[0], argv);
    _exit(127);
}

/* Two streams on one socket: with one, each change of direction would seek */
static void open_streams(int fd, FILE **in, FILE **out)
{
    struct timeval timeout = { .tv_sec = ANSWER_SECONDS };

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    *in = fdopen(fd, "r");
    *out = fdopen(fcntl(fd, F_DUPFD_CLOEXEC, 0), "w");
    g_assert(*in && *out);
}

static bool spawn(BenchQtest *qt, char **argv, const BenchMemory *mem,
                  GError **errp)
{
    int qtest[2], qmp[2], firmware = make_firmware();
    pid_t parent = getpid();
    g_auto(GStrv) args = NULL;

    if (firmware < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, qtest) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, qmp) < 0) {
        g_set_error(errp, BENCH_ERROR, 0, "cannot make QEMU's sockets: %s",
                    g_strerror(errno));
        return false;
    }
    fcntl(qtest[0], F_SETFD, FD_CLOEXEC);
    fcntl(qmp[0], F_SETFD, FD_CLOEXEC);
    args = full_argv(argv, mem, qtest[1], qmp[1], firmware);

    qt->pid = fork();
    if (qt->pid == 0) {
        run_qemu(args, parent);
    }
    close(qtest[1]);
    close(qmp[1]);
    close(firmware);
    open_streams(qtest[0], &qt->qtest_in, &qt->qtest_out);
    open_streams(qmp[0], &qt->qmp_in, &qt->qmp_out);
    if (qt->pid < 0) {
        qt->pid = 0;
        g_set_error(errp, BENCH_ERROR, 0, "cannot start a process: %s",
                    g_strerror(errno));
        return false;
    }
    return true;
}

static bool start(BenchQtest *qt, char **argv, const BenchMemory *mem,
                  GError **errp)
{
    JsonNode *ret;

    /* Whether a write reaches QEMU shows in the answer. */
    signal(SIGPIPE, SIG_IGN);

    if (!spawn(qt, argv, mem, errp)) {
        return false;
    }
    ret = bench_qmp(qt, "{ 'execute': 'qmp_capabilities' }", errp);
    if (!ret) {
        g_prefix_error(errp, "%s does not start; what it said is above: ",
                       argv[0]);
        return false;
    }
    json_node_unref(ret);
    return true;
}

BenchQtest *bench_qtest_start(char **argv, const BenchMemory *mem,
                              GError **errp)
{
    BenchQtest *qt = g_new0(BenchQtest, 1);

    if (!start(qt, argv, mem, errp)) {
        bench_qtest_end(qt);
        return NULL;
    }
    return qt;
}

/* Ending */

bool bench_qtest_alive(BenchQtest *qt, GError **errp)
{
    int status;

    if (qt->pid && waitpid(qt->pid, &status, WNOHANG) == qt->pid) {
        qt->pid = 0;
        if (WIFSIGNALED(status)) {
            g_set_error(errp, BENCH_ERROR, 0, "QEMU was killed by signal %d",
                        WTERMSIG(status));
        } else {
            g_set_error(errp, BENCH_ERROR, 0, "QEMU ended with status %d",
                        WEXITSTATUS(status));
        }
        return false;
    }
    return true;
}

static void reap(BenchQtest *qt)
{
    for (unsigned i = 0; i < END_SECONDS * 100; i++) {
        if (waitpid(qt->pid, NULL, WNOHANG)) {
            return;
        }
        g_usleep(10000);
    }
    kill(qt->pid, SIGKILL);
    waitpid(qt->pid, NULL, 0);
}

static void close_streams(BenchQtest *qt)
{
    if (qt->qtest_in) {
        fclose(qt->qtest_in);
        fclose(qt->qtest_out);
        fclose(qt->qmp_in);
        fclose(qt->qmp_out);
    }
}

bool bench_qtest_replace(BenchQtest *qt, char **argv, const BenchMemory *mem,
                         GError **errp)
{
    if (!bench_qtest_alive(qt, errp)) {
        return false;
    }
    kill(qt->pid, SIGKILL);
    waitpid(qt->pid, NULL, 0);
    close_streams(qt);
    g_free(qt->error);
    *qt = (BenchQtest) { 0 };
    return start(qt, argv, mem, errp);
}

void bench_qtest_end(BenchQtest *qt)
{
    if (!qt) {
        return;
    }
    if (qt->pid) {
        fputs("{ \"execute\": \"quit\" }\n", qt->qmp_out);
        fflush(qt->qmp_out);
        reap(qt);
    }
    close_streams(qt);
    g_free(qt->error);
    g_free(qt);
}

/* qtest */

static void send_command(BenchQtest *qt, const char *command)
{
    fprintf(qt->qtest_out, "%s\n", command);
    fflush(qt->qtest_out);
}

/* Returns what comes after "OK", NULL if that does not come */
static char *take_answer(BenchQtest *qt, const char *command)
{
    char line[256];

    do {
        if (!fgets(line, sizeof(line), qt->qtest_in)) {
            set_error(qt, "QEMU does not answer on its qtest socket");
            return NULL;
        }
    } while (g_str_has_prefix(line, "IRQ "));

    if (!g_str_has_prefix(line, "OK")) {
        g_autofree char *what = g_strdup_printf("qtest: \"%s\" was answered "
                                                "\"%s\"", command,
                                                g_strchomp(line));

        set_error(qt, what);
        return NULL;
    }
    return g_strdup(g_strstrip(line + 2));
}

/* What bench_qtest_try_write() did not wait for comes first */
static void take_late_answer(BenchQtest *qt)
{
    if (qt->late) {
        g_autofree char *answer = take_answer(qt, "a write");

        qt->late = false;
    }
}

/* Sends a command and returns its answer */
static char *transact(BenchQtest *qt, const char *command)
{
    take_late_answer(qt);
    if (qt->error) {
        return NULL;
    }
    send_command(qt, command);
    return take_answer(qt, command);
}

static char *write_command(const char *command, uint64_t addr, uint64_t value)
{
    return g_strdup_printf("%s 0x%" G_GINT64_MODIFIER "x 0x%"
                           G_GINT64_MODIFIER "x", command, addr, value);
}

/* Is there something to be read within @ms? */
static bool wait_answer(BenchQtest *qt, unsigned ms)
{
    struct pollfd fd = { .fd = fileno(qt->qtest_in), .events = POLLIN };

    return poll(&fd, 1, ms) > 0;
}

bool bench_qtest_try_write(BenchQtest *qt, const char *command, uint64_t addr,
                           uint64_t value, unsigned ms)
{
    g_autofree char *text = write_command(command, addr, value);

    take_late_answer(qt);
    if (qt->error) {
        return false;
    }
    send_command(qt, text);
    qt->late = true;
    if (!wait_answer(qt, ms)) {
        return false;
    }
    take_late_answer(qt);
    return true;
}

bool bench_qtest_clock_step(BenchQtest *qt, uint64_t ns)
{
    g_autofree char *text = g_strdup_printf("clock_step %" G_GUINT64_FORMAT,
                                            ns);

    if (qt->late && !wait_answer(qt, 0)) {
        return false;
    }
    take_late_answer(qt);
    if (qt->error) {
        return false;
    }
    send_command(qt, text);
    qt->late = true;
    return true;
}

void bench_qtest_write(BenchQtest *qt, const char *command, uint64_t addr,
                       uint64_t value)
{
    g_autofree char *text = write_command(command, addr, value);
    g_autofree char *answer = transact(qt, text);
}

uint64_t bench_qtest_read(BenchQtest *qt, const char *command, uint64_t addr)
{
    g_autofree char *text = g_strdup_printf("%s 0x%" G_GINT64_MODIFIER "x",
                                            command, addr);
    g_autofree char *answer = transact(qt, text);

    return answer ? g_ascii_strtoull(answer, NULL, 0) : UINT64_MAX;
}

bool bench_qtest_failed(BenchQtest *qt, GError **errp)
{
    if (qt->error) {
        g_set_error_literal(errp, BENCH_ERROR, 0, qt->error);
        return true;
    }
    return false;
}

/* QMP */

/* The next line that is an answer; greeting and events are skipped */
static JsonNode *read_answer(BenchQtest *qt, GError **errp)
{
    g_autofree char *line = NULL;
    size_t size = 0;

    while (getline(&line, &size, qt->qmp_in) > 0) {
        JsonNode *node = json_from_string(line, NULL);
        JsonObject *object = node && JSON_NODE_HOLDS_OBJECT(node) ?
                             json_node_get_object(node) : NULL;

        if (object && (json_object_has_member(object, "return") ||
                       json_object_has_member(object, "error"))) {
            return node;
        }
        g_clear_pointer(&node, json_node_unref);
    }
    g_set_error(errp, BENCH_ERROR, 0, "QEMU does not answer on its monitor");
    return NULL;
}

JsonNode *bench_qmp(BenchQtest *qt, const char *command, GError **errp)
{
    g_autoptr(JsonNode) answer = NULL;
    JsonObject *object;

    fprintf(qt->qmp_out, "%s\n", command);
    fflush(qt->qmp_out);
    answer = read_answer(qt, errp);
    if (!answer) {
        return NULL;
    }
    object = json_node_get_object(answer);
    if (json_object_has_member(object, "error")) {
        JsonObject *error = json_object_get_object_member(object, "error");

        g_set_error(errp, BENCH_ERROR, 0, "%s: %s", command,
                    json_object_get_string_member(error, "desc"));
        return NULL;
    }
    return json_node_copy(json_object_get_member(object, "return"));
}
