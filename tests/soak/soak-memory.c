/*
 * Commands of the driver that are about guest memory
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "soak-driver.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void soak_memory_cleanup(Driver *d)
{
    if (d->extra) {
        munmap(d->extra, d->extra_size);
        d->extra = NULL;
    }
}

/* add-memory ADDRESS BYTES PATH */
static bool cmd_add_memory(Driver *d, char **args, GString *out, GError **errp)
{
    uint64_t addr = g_ascii_strtoull(args[0], NULL, 0);
    uint64_t size = g_ascii_strtoull(args[1], NULL, 0);
    int fd = open(args[2], O_RDWR | O_CLOEXEC);
    void *host;

    host = fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE,
                                      MAP_SHARED, fd, 0);
    if (host == MAP_FAILED) {
        g_set_error(errp, BENCH_ERROR, 0, "cannot map %s: %s", args[2],
                    g_strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    if (host == MAP_FAILED) {
        return false;
    }
    if (!soak_load_add_memory(d->load, addr, host, size, errp)) {
        munmap(host, size);
        return false;
    }
    soak_memory_cleanup(d);
    d->extra = host;
    d->extra_size = size;
    return true;
}

static bool cmd_drop_memory(Driver *d, char **args, GString *out,
                            GError **errp)
{
    if (!soak_load_add_memory(d->load, 0, NULL, 0, errp)) {
        return false;
    }
    soak_memory_cleanup(d);
    return true;
}

static bool cmd_use_memory(Driver *d, char **args, GString *out, GError **errp)
{
    static const char *const names[] = { "none", "careful", "rude", NULL };

    for (unsigned i = 0; names[i]; i++) {
        if (!strcmp(args[0], names[i])) {
            return soak_load_use_memory(d->load, i, errp);
        }
    }
    g_set_error(errp, BENCH_ERROR, 0, "use-memory takes none, careful or rude");
    return false;
}

const Command soak_memory_commands[] = {
    { "add-memory", 3, cmd_add_memory, "ADDRESS BYTES FILE" },
    { "use-memory", 1, cmd_use_memory, "none, careful or rude" },
    { "drop-memory", 0, cmd_drop_memory, "forget it" },
    {}
};
