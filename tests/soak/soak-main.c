/*
 * A virtio-blk driver that never stops while its disk is managed
 *
 * Starts QEMU, keeps every queue of its disk full of verified requests, and
 * does between two looks at the rings what a line of standard input asks for.
 * Each line is answered by "ok" and what there is to tell; a mistake of the
 * device's, at any time, by "fault" and what it was.  After that QEMU is left
 * as it is, to be looked at, until standard input ends.
 *
 * The interface of tests/soak/run, which manages the disk meanwhile.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "soak-driver.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MIB         (1024 * 1024ull)
#define IDLE_US     50
#define MAX_WORDS   5
#define SECOND      "@1 "       /* before a command: it is for the other disk */

static const char summary[] =
    "Keeps the queues of a virtio-blk disk full of verified requests while the\n"
    "disk is managed by somebody else.  QEMU is started with a halted vCPU;\n"
    "machine and memory are added to the command line.  A line \"help\" of\n"
    "standard input shows what can be asked for.\n";

/* Output */

static void say(const char *kind, const char *text)
{
    printf("%s%s%s\n", kind, *text ? " " : "", text);
    fflush(stdout);
}

/* Commands */

static bool cmd_start(Driver *d, char **args, GString *out, GError **errp)
{
    return soak_device_probe(d->unit->dev, errp) &&
           soak_load_start(d->unit->load, errp);
}

static bool cmd_empty(Driver *d, char **args, GString *out, GError **errp)
{
    if (soak_load_in_flight(d->unit->load)) {
        g_set_error(errp, BENCH_ERROR, 0, "there are requests in flight");
        return false;
    }
    soak_disk_clear(d->unit->disk);
    return true;
}

static bool cmd_reset(Driver *d, char **args, GString *out, GError **errp)
{
    return soak_load_start(d->unit->load, errp);
}

static bool cmd_reset_queue(Driver *d, char **args, GString *out,
                            GError **errp)
{
    return soak_load_reset_queue(d->unit->load, errp);
}

static bool cmd_leave(Driver *d, char **args, GString *out, GError **errp)
{
    return soak_load_leave(d->unit->load, true, errp);
}

static bool cmd_lost(Driver *d, char **args, GString *out, GError **errp)
{
    return soak_load_leave(d->unit->load, false, errp);
}

static bool cmd_eject(Driver *d, char **args, GString *out, GError **errp)
{
    soak_device_eject(d->unit->dev);
    return soak_load_leave(d->unit->load, false, errp);
}

static bool cmd_pause(Driver *d, char **args, GString *out, GError **errp)
{
    d->paused = true;
    return true;
}

static bool cmd_resume(Driver *d, char **args, GString *out, GError **errp)
{
    d->paused = false;
    soak_load_hold(d->unit->load, false);
    for (unsigned i = 0; i < DRIVER_UNITS; i++) {
        soak_load_resume(d->units[i].load);
    }
    return true;
}

static bool cmd_notifiers(Driver *d, char **args, GString *out, GError **errp)
{
    return soak_device_find_notifiers(d->unit->dev, errp);
}

static bool cmd_quiesce(Driver *d, char **args, GString *out, GError **errp)
{
    return soak_load_quiesce(d->unit->load, errp);
}

static bool cmd_verify(Driver *d, char **args, GString *out, GError **errp)
{
    return soak_load_verify(d->unit->load, -1, errp);
}

/* copy FILE */
static bool cmd_copy(Driver *d, char **args, GString *out, GError **errp)
{
    int fd = open(args[0], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok;

    if (fd < 0 || ftruncate(fd, d->unit->disk->blocks * SOAK_BLOCK) < 0) {
        g_set_error(errp, BENCH_ERROR, 0, "cannot write %s: %s", args[0],
                    g_strerror(errno));
        ok = false;
    } else {
        ok = soak_load_verify(d->unit->load, fd, errp);
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

static bool cmd_stats(Driver *d, char **args, GString *out, GError **errp)
{
    const SoakStats *s = soak_load_stats(d->unit->load);

    g_string_append_printf(out, "{\"requests\": %" G_GUINT64_FORMAT
                           ", \"verified\": %" G_GUINT64_FORMAT
                           ", \"kicks\": %" G_GUINT64_FORMAT
                           ", \"irqs\": %" G_GUINT64_FORMAT
                           ", \"forgotten\": %" G_GUINT64_FORMAT
                           ", \"elsewhere\": %" G_GUINT64_FORMAT "}",
                           s->requests, s->verified, s->kicks, s->irqs,
                           s->forgotten, s->elsewhere);
    return true;
}

static bool cmd_where(Driver *d, char **args, GString *out, GError **errp)
{
    g_autofree char *text = soak_load_describe(d->unit->load);

    g_string_append(out, text);
    return true;
}

static bool cmd_capacity(Driver *d, char **args, GString *out, GError **errp)
{
    g_string_append_printf(out, "%" G_GUINT64_FORMAT,
                           soak_device_capacity(d->unit->dev));
    return true;
}

static bool cmd_broken(Driver *d, char **args, GString *out, GError **errp)
{
    g_string_append(out, soak_device_needs_reset(d->unit->dev) ? "yes" : "no");
    return true;
}

static bool cmd_clock(Driver *d, char **args, GString *out, GError **errp)
{
    soak_load_set_clock(d->unit->load, !strcmp(args[0], "on"));
    return true;
}

static bool cmd_drop_kicks(Driver *d, char **args, GString *out, GError **errp)
{
    soak_load_drop_kicks(d->unit->load, atoi(args[0]));
    return true;
}

static bool cmd_drop_irqs(Driver *d, char **args, GString *out, GError **errp)
{
    soak_load_drop_irqs(d->unit->load, atoi(args[0]));
    return true;
}

/* crash FILE */
static bool cmd_crash(Driver *d, char **args, GString *out, GError **errp)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) argv = NULL;

    if (!g_file_get_contents(args[0], &text, NULL, errp)) {
        return false;
    }
    argv = g_strsplit(text, "\n", -1);
    for (unsigned i = 0; i < DRIVER_UNITS; i++) {
        if (!soak_device_replace(d->units[i].dev, argv, &d->mem, errp) ||
            !soak_load_leave(d->units[i].load, false, errp)) {
            return false;
        }
    }
    g_string_append_printf(out, "%d", (int)d->units[0].dev->qt->pid);
    return true;
}

/* out PORT VALUE BYTES: as the guest's firmware does */
static bool cmd_out(Driver *d, char **args, GString *out, GError **errp)
{
    bench_qtest_write(d->unit->dev->qt, atoi(args[2]) == 1 ? "outb" : "outl",
                      g_ascii_strtoull(args[0], NULL, 0),
                      g_ascii_strtoull(args[1], NULL, 0));
    return !bench_qtest_failed(d->unit->dev->qt, errp);
}

static const Command main_commands[] = {
    { "start", 0, cmd_start, "find the disk, reset it, begin" },
    { "empty", 0, cmd_empty, "the disk is a new one, all zeroes" },
    { "reset", 0, cmd_reset, "reset the disk in mid-flight, begin anew" },
    { "reset-queue", 0, cmd_reset_queue, "reset one of its queues likewise" },
    { "leave", 0, cmd_leave, "reset the disk in mid-flight, stay so" },
    { "lost", 0, cmd_lost, "the disk was reset or removed by others" },
    { "eject", 0, cmd_eject, "let the disk be unplugged in mid-flight" },
    { "pause", 0, cmd_pause, "stand still, as stopped vCPUs do" },
    { "resume", 0, cmd_resume, "after pause, quiesce, verify" },
    { "notifiers", 0, cmd_notifiers, "find eventfds, as QEMU made new ones" },
    { "quiesce", 0, cmd_quiesce, "let all requests end, make no more" },
    { "verify", 0, cmd_verify, "quiesce, read all of the disk" },
    { "copy", 1, cmd_copy, "FILE: verify, and keep what was read" },
    { "stats", 0, cmd_stats, "counters" },
    { "where", 0, cmd_where, "where each queue stands" },
    { "capacity", 0, cmd_capacity, "of the disk, in sectors" },
    { "broken", 0, cmd_broken, "does the disk need a reset?" },
    { "crash", 1, cmd_crash, "FILE: kill QEMU, run the lines of FILE instead" },
    { "out", 3, cmd_out, "PORT VALUE BYTES: write to an I/O port" },
    { "clock", 1, cmd_clock, "on or off: the guest's time, for throttles" },
    { "drop-kicks", 1, cmd_drop_kicks, "N: a fault that must be noticed" },
    { "drop-irqs", 1, cmd_drop_irqs, "N: another" },
    {}
};

static const Command *const tables[] = { main_commands, soak_memory_commands };

static void help(GString *out)
{
    g_string_append(out, "behind \"@1 \", of the second disk: ");
    for (unsigned i = 0; i < G_N_ELEMENTS(tables); i++) {
        for (const Command *c = tables[i]; c->name; c++) {
            g_string_append_printf(out, "%s%s (%s)", out->len ? ", " : "",
                                   c->name, c->what);
        }
    }
}

/* Returns NULL if there is none with so many words behind it */
static const Command *find_command(const char *name, unsigned args)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(tables); i++) {
        for (const Command *c = tables[i]; c->name; c++) {
            if (!strcmp(name, c->name) && args == c->args) {
                return c;
            }
        }
    }
    return NULL;
}

static bool run_command(Driver *d, const char *line, GString *out,
                        GError **errp)
{
    bool second = g_str_has_prefix(line, SECOND);
    g_auto(GStrv) words = g_strsplit(line + (second ? strlen(SECOND) : 0), " ",
                                     MAX_WORDS);
    unsigned n = g_strv_length(words);
    const Command *command;

    if (n && !strcmp(words[0], "help")) {
        help(out);
        return true;
    }
    command = n ? find_command(words[0], n - 1) : NULL;
    if (!command) {
        g_set_error(errp, BENCH_ERROR, 0, "unknown command or wrong number of "
                    "words: %s", line);
        return false;
    }
    d->unit = &d->units[second];
    return command->func(d, words + 1, out, errp);
}

/* The loop */

/* Lines of standard input, without waiting for them */
typedef struct Input {
    GString *text;
    bool ended;
} Input;

static void read_input(Input *in, unsigned ms)
{
    struct pollfd fd = { .fd = STDIN_FILENO, .events = POLLIN };
    char buffer[4096];
    ssize_t n;

    if (poll(&fd, 1, ms) <= 0) {
        return;
    }
    n = read(STDIN_FILENO, buffer, sizeof(buffer));
    in->ended = n <= 0;
    g_string_append_len(in->text, buffer, MAX(n, 0));
}

/* The next line, to be freed by the caller; NULL if there is none yet */
static char *next_line(Input *in)
{
    char *end = strchr(in->text->str, '\n');
    char *line;

    if (!end) {
        return NULL;
    }
    line = g_strndup(in->text->str, end - in->text->str);
    g_string_erase(in->text, 0, strlen(line) + 1);
    return line;
}

static bool obey(Driver *d, Input *in, GError **errp)
{
    g_autofree char *line = next_line(in);
    g_autoptr(GString) out = g_string_new(NULL);

    if (line) {
        if (!run_command(d, line, out, errp)) {
            return false;
        }
        say("ok", out->str);
    }
    return true;
}

bool driver_sweep(Driver *d, bool *busy, GError **errp)
{
    *busy = false;
    for (unsigned i = 0; !d->paused && i < DRIVER_UNITS; i++) {
        bool some;

        if (!soak_load_sweep(d->units[i].load, &some, errp)) {
            g_prefix_error(errp, "disk %u: ", i);
            return false;
        }
        *busy |= some;
    }
    return true;
}

static bool serve(Driver *d, Input *in, GError **errp)
{
    while (!in->ended) {
        bool busy;

        if (!driver_sweep(d, &busy, errp)) {
            return false;
        }
        read_input(in, d->paused ? 100 : 0);
        if (!obey(d, in, errp)) {
            return false;
        }
        if (!busy && !d->paused) {
            g_usleep(IDLE_US);
        }
    }
    return true;
}

/* Memory for a load each, and the rest */
static bool set_up_memory(Driver *d, GError **errp)
{
    uint64_t size = soak_load_memory_size(d->queues, d->depth);

    if (!bench_memory_init(&d->mem, d->memory * MIB, false, errp)) {
        return false;
    }
    if (bench_memory_left(&d->mem) < DRIVER_UNITS * size) {
        g_set_error(errp, BENCH_ERROR, 0, "there is too little guest memory: "
                    "give more with --memory");
        return false;
    }
    for (unsigned i = 0; i < DRIVER_UNITS; i++) {
        d->units[i].mem = bench_memory_part(&d->mem, size);
    }
    return true;
}

static bool set_up(Driver *d, GError **errp)
{
    if (!set_up_memory(d, errp)) {
        return false;
    }
    for (unsigned i = 0; i < DRIVER_UNITS; i++) {
        DriverUnit *unit = &d->units[i];

        unit->dev = i ? soak_device_beside(d->units[0].dev, &unit->mem)
                      : soak_device_new(d->argv + 1, d->queues, &d->mem,
                                        &unit->mem, errp);
        if (!unit->dev) {
            return false;
        }
        unit->disk = soak_disk_new(d->disk_mib * MIB / SOAK_BLOCK);
        unit->load = soak_load_new(unit->dev, unit->disk, d->depth, d->stall,
                                   d->seed + i);
    }
    return soak_memory_init(d, errp);
}

static void tear_down(Driver *d)
{
    soak_memory_cleanup(d);
    for (unsigned i = DRIVER_UNITS; i-- > 0;) {
        soak_load_free(d->units[i].load);
        soak_disk_free(d->units[i].disk);
        soak_device_free(d->units[i].dev);
    }
    bench_memory_cleanup(&d->mem);
}

static int run_driver(Driver *d)
{
    g_autoptr(GError) error = NULL;
    Input in = { .text = g_string_new(NULL) };
    bool ok = set_up(d, &error);

    if (ok) {
        g_autofree char *pid = g_strdup_printf("%d",
                                               (int)d->units[0].dev->qt->pid);

        say("ok", pid);
        ok = serve(d, &in, &error);
    }
    if (!ok) {
        say("fault", error->message);
    }
    while (!ok && !in.ended) {
        read_input(&in, 1000);
    }
    g_string_free(in.text, TRUE);
    tear_down(d);
    return !ok;
}

static const char *check_options(const Driver *d)
{
    if (d->queues < 1 || d->queues > 64) {
        return "--queues must be from 1 to 64";
    }
    if (d->depth < 1 || d->depth > 1024) {
        return "--depth must be from 1 to 1024";
    }
    if (d->memory < 48 || d->memory > 2048) {
        return "--memory must be from 48 to 2048 MiB";
    }
    if (d->disk_mib < 1 || d->stall < 1) {
        return "--disk and --stall must be positive";
    }
    return d->argv[1] ? NULL : "give QEMU's command line behind --";
}

int main(int argc, char **argv)
{
    Driver d = { .queues = 1, .depth = 16, .memory = 64, .disk_mib = 16,
                 .stall = 60, .seed = 1 };
    const GOptionEntry entries[] = {
        { "queues", 0, 0, G_OPTION_ARG_INT, &d.queues,
          "queues to use (default 1)", "N" },
        { "depth", 0, 0, G_OPTION_ARG_INT, &d.depth,
          "requests in flight per queue (default 16); as many as it has "
          "entries keep it full", "N" },
        { "memory", 0, 0, G_OPTION_ARG_INT, &d.memory,
          "guest memory (default 64)", "MIB" },
        { "disk", 0, 0, G_OPTION_ARG_INT, &d.disk_mib,
          "first part of the disk to work on (default 16)", "MIB" },
        { "stall", 0, 0, G_OPTION_ARG_INT, &d.stall,
          "when a request counts as lost (default 60)", "SECONDS" },
        { "seed", 0, 0, G_OPTION_ARG_INT, &d.seed,
          "of the random numbers", "N" },
        {}
    };
    g_autoptr(GOptionContext) context =
        g_option_context_new("-- QEMU OPTION...");
    g_autoptr(GError) error = NULL;
    const char *why = NULL;

    g_option_context_set_summary(context, summary);
    g_option_context_add_main_entries(context, entries, NULL);
    if (g_option_context_parse(context, &argc, &argv, &error)) {
        d.argv = argv + (argc > 1 && !strcmp(argv[1], "--"));
        why = check_options(&d);
    } else {
        why = error->message;
    }
    if (why) {
        fprintf(stderr, "%s: %s (see --help)\n", g_get_prgname(), why);
        return 2;
    }
    return run_driver(&d);
}
