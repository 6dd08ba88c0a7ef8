/*
 * The driver, as its commands see it
 *
 * Each line of standard input is one command.  Those that are about guest
 * memory stand in soak-memory.c, the others in soak-main.c.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_SOAK_SOAK_DRIVER_H
#define TESTS_SOAK_SOAK_DRIVER_H

#include "soak-load.h"

typedef struct Driver {
    int queues;
    int depth;
    int memory;
    int disk_mib;
    int stall;
    int seed;
    char **argv;
    BenchMemory mem;
    SoakDevice *dev;
    SoakDisk *disk;
    SoakLoad *load;
    bool paused;
    void *extra;                /* memory that was added, mapped here */
    uint64_t extra_size;
} Driver;

/**
 * CommandFunc: does what a command asks for
 * @args: as many as the table says
 * @out: gets what there is to tell
 *
 * Returns: false with @errp set if the device has made a mistake, or whoever
 *          asks for this has; the driver does nothing more then
 */
typedef bool CommandFunc(Driver *d, char **args, GString *out, GError **errp);

typedef struct Command {
    const char *name;           /* NULL ends a table */
    unsigned args;
    CommandFunc *func;
    const char *what;
} Command;

extern const Command soak_memory_commands[];

/**
 * soak_memory_cleanup: let go of memory that was added
 */
void soak_memory_cleanup(Driver *d);

#endif /* TESTS_SOAK_SOAK_DRIVER_H */
