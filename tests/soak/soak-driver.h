/*
 * The driver, as its commands see it
 *
 * Each line of standard input is one command.  Those that are about guest
 * memory stand in soak-memory.c, the others in soak-main.c.
 *
 * There are two disks, each with a load of its own.  A command is about the
 * first one unless "@1" stands before it; memory is added for that one alone.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_SOAK_SOAK_DRIVER_H
#define TESTS_SOAK_SOAK_DRIVER_H

#include "soak-load.h"
#include "soak-memdev.h"

#define DRIVER_UNITS    2

/* A disk, which need not be there, and its load */
typedef struct DriverUnit {
    BenchMemory mem;
    SoakDevice *dev;
    SoakDisk *disk;
    SoakLoad *load;
} DriverUnit;

typedef struct Driver {
    int queues;
    int depth;
    int memory;
    int disk_mib;
    int stall;
    int seed;
    char **argv;
    BenchMemory mem;
    DriverUnit units[DRIVER_UNITS];
    DriverUnit *unit;           /* which the command is about */
    bool paused;
    BenchMemory own;            /* the guest's own, to be added as other is */
    uint8_t *extra;             /* memory that was added, or NULL */
    uint64_t extra_size;
    bool extra_mapped;          /* it is not the guest's own */
    SoakMemdev *virtio_mem;
    SoakMemdev *balloon;
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

/**
 * driver_sweep: let all load go on, unless it is paused
 * @busy: set to whether there was something
 *
 * Returns: false with @errp set, see soak_load_sweep()
 */
bool driver_sweep(Driver *d, bool *busy, GError **errp);

extern const Command soak_memory_commands[];

/**
 * soak_memory_init: set up what these commands need
 *
 * Returns: false with @errp set if the guest has too little memory
 */
bool soak_memory_init(Driver *d, GError **errp);

/**
 * soak_memory_cleanup: the pair; also before soak_memory_init()
 */
void soak_memory_cleanup(Driver *d);

#endif /* TESTS_SOAK_SOAK_DRIVER_H */
