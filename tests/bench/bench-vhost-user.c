/*
 * The benchmark's device: a vhost-user-blk back-end
 *
 * Knows the front-end's side of the vhost-user protocol
 * (docs/interop/vhost-user.rst), as far as one disk needs it,
 * and how to find the threads of the process behind a socket.  Does not know
 * what goes through the rings.  The back-end was started by somebody else, is
 * only connected to, and goes on afterwards; at most its threads are held
 * between runs, by ptrace, so that they also go on if we die.
 *
 * Messages go in the order in which QEMU sends them, since that is the one
 * that back-ends are tested with.  Nothing that a back-end answers is believed
 * before it was checked, and no answer is waited for longer than ANSWER_US.
 *
 * The protocol has no means to ask how large a queue may be.  256 entries, the
 * default of QEMU's virtio-blk-pci, are taken where nothing is wished, and up
 * to 1024 where they are: qemu-storage-daemon, like all that is made with
 * libvhost-user, can serve that many.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-device.h"
#include "bench-process.h"

#include <errno.h>
#include <linux/vhost_types.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define QUEUE_SIZE_DEFAULT      256
#define QUEUE_SIZE_LIMIT        1024
#define ANSWER_US               (10 * G_USEC_PER_SEC)

/* SET_VRING_KICK and SET_VRING_CALL have eight bits for a queue's index. */
#define QUEUES_LIMIT            256

#define VU_VERSION              1u
#define VU_VERSION_MASK         3u
#define VU_REPLY                (1u << 2)
#define VU_NEED_REPLY           (1u << 3)

/* A bit of the features that VIRTIO reserves for this */
#define VU_F_PROTOCOL_FEATURES  30

#define VU_PROTOCOL_MQ          (1ull << 0)
#define VU_PROTOCOL_REPLY_ACK   (1ull << 3)
#define VU_PROTOCOL_CONFIG      (1ull << 9)

typedef enum VuRequest {
    VU_GET_FEATURES = 1,
    VU_SET_FEATURES = 2,
    VU_SET_OWNER = 3,
    VU_SET_MEM_TABLE = 5,
    VU_SET_VRING_NUM = 8,
    VU_SET_VRING_ADDR = 9,
    VU_SET_VRING_BASE = 10,
    VU_GET_VRING_BASE = 11,
    VU_SET_VRING_KICK = 12,
    VU_SET_VRING_CALL = 13,
    VU_GET_PROTOCOL_FEATURES = 15,
    VU_SET_PROTOCOL_FEATURES = 16,
    VU_GET_QUEUE_NUM = 17,
    VU_SET_VRING_ENABLE = 18,
    VU_GET_CONFIG = 24,
} VuRequest;

static const char *const request_names[] = {
    [VU_GET_FEATURES] = "GET_FEATURES",
    [VU_SET_FEATURES] = "SET_FEATURES",
    [VU_SET_OWNER] = "SET_OWNER",
    [VU_SET_MEM_TABLE] = "SET_MEM_TABLE",
    [VU_SET_VRING_NUM] = "SET_VRING_NUM",
    [VU_SET_VRING_ADDR] = "SET_VRING_ADDR",
    [VU_SET_VRING_BASE] = "SET_VRING_BASE",
    [VU_GET_VRING_BASE] = "GET_VRING_BASE",
    [VU_SET_VRING_KICK] = "SET_VRING_KICK",
    [VU_SET_VRING_CALL] = "SET_VRING_CALL",
    [VU_GET_PROTOCOL_FEATURES] = "GET_PROTOCOL_FEATURES",
    [VU_SET_PROTOCOL_FEATURES] = "SET_PROTOCOL_FEATURES",
    [VU_GET_QUEUE_NUM] = "GET_QUEUE_NUM",
    [VU_SET_VRING_ENABLE] = "SET_VRING_ENABLE",
    [VU_GET_CONFIG] = "GET_CONFIG",
};

/* All of the configuration space that is looked at, and that any disk has */
#define CONFIG_SIZE     (offsetof(struct virtio_blk_config, num_queues) + 2)

/* What goes over the socket, in the byte order of the machine */

typedef struct VuHeader {
    uint32_t request;
    uint32_t flags;
    uint32_t size;              /* of the payload */
} VuHeader;

typedef struct VuMemory {
    uint32_t num_regions;       /* always 1 here */
    uint32_t padding;
    uint64_t guest_addr;
    uint64_t size;
    uint64_t user_addr;
    uint64_t offset;            /* in the file */
} VuMemory;

typedef struct VuConfig {
    uint32_t offset;
    uint32_t size;
    uint32_t flags;
    uint8_t space[CONFIG_SIZE];
} VuConfig;

typedef union VuPayload {
    uint64_t u64;
    struct vhost_vring_state state;
    struct vhost_vring_addr addr;
    VuMemory memory;
    VuConfig config;
} VuPayload;

G_STATIC_ASSERT(sizeof(VuHeader) == 12);
G_STATIC_ASSERT(sizeof(VuMemory) == 40);
G_STATIC_ASSERT(sizeof(VuConfig) == 12 + CONFIG_SIZE);
G_STATIC_ASSERT(sizeof(struct vhost_vring_state) == 8);
G_STATIC_ASSERT(sizeof(struct vhost_vring_addr) == 40);
G_STATIC_ASSERT(CONFIG_SIZE == 36);

typedef struct BenchVhostUser {
    BenchDevice dev;            /* first */
    char *path;
    int fd;                     /* of the connection, -1 before */
    uint64_t protocol;          /* protocol features in use */
    bool acknowledges;          /* each request gets an answer */
    bool broken;                /* nothing sensible comes from the socket */
    unsigned num_started;       /* queues that the back-end may be serving */
    bool hold;                  /* its threads, between runs */
    unsigned num_held;          /* the first of dev.threads that are held */
} BenchVhostUser;

static BenchVhostUser *vu_from_device(BenchDevice *dev)
{
    return (BenchVhostUser *)dev;
}

/* Always false, so that callers can return it. */
static bool G_GNUC_PRINTF(3, 4)
vu_error(BenchVhostUser *vu, GError **errp, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(errp, BENCH_ERROR, 0, "vhost-user back-end %s %s", vu->path,
                text);
    return false;
}

/* Whether an answer came or not, later ones cannot be told apart any more. */
static bool vu_broken(BenchVhostUser *vu, VuRequest request, int error,
                      GError **errp)
{
    const char *name = request_names[request];

    vu->broken = true;
    switch (error) {
    case 0:
    case EPIPE:
    case ECONNRESET:
        return vu_error(vu, errp, "closed the connection at %s: see what it "
                        "says itself", name);
    case ETIMEDOUT:
    case EAGAIN:
        return vu_error(vu, errp, "did not answer %s in time: it hangs, or "
                        "another front-end is connected to it", name);
    default:
        return vu_error(vu, errp, "cannot be talked to, at %s: %s", name,
                        g_strerror(error));
    }
}

/*
 * One message and its answer
 */

/* @fd: passed along, unless it is negative */
static bool vu_send(BenchVhostUser *vu, const VuHeader *header,
                    const VuPayload *payload, int fd, GError **errp)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control = { 0 };
    struct iovec iov[] = {
        { (void *)header, sizeof(*header) },
        { (void *)payload, header->size },
    };
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = G_N_ELEMENTS(iov) };
    ssize_t sent;

    if (fd >= 0) {
        struct cmsghdr *cmsg = &control.header;

        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
        memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
    }
    do {
        sent = sendmsg(vu->fd, &msg, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) {
        return vu_broken(vu, header->request, errno, errp);
    }
    if ((size_t)sent != sizeof(*header) + header->size) {
        return vu_broken(vu, header->request, EAGAIN, errp);
    }
    return true;
}

/*
 * Like recv(2), which is also why file descriptors that nobody asked for go
 * away: there is no room for them.  Fails with ETIMEDOUT at @deadline.
 */
static ssize_t vu_receive_some(BenchVhostUser *vu, void *buf, size_t size,
                               gint64 deadline)
{
    struct pollfd pollfd = { .fd = vu->fd, .events = POLLIN };

    for (;;) {
        gint64 left = deadline - g_get_monotonic_time();
        ssize_t received;

        if (left <= 0) {
            errno = ETIMEDOUT;
            return -1;
        }
        received = recv(vu->fd, buf, size, MSG_DONTWAIT);
        if (received >= 0 || (errno != EAGAIN && errno != EINTR)) {
            return received;
        }
        poll(&pollfd, 1, left / 1000 + 1);
    }
}

static bool vu_receive(BenchVhostUser *vu, VuRequest request, void *buf,
                       size_t size, gint64 deadline, GError **errp)
{
    char *to = buf;

    while (size) {
        ssize_t received = vu_receive_some(vu, to, size, deadline);

        if (received <= 0) {
            return vu_broken(vu, request, received ? errno : 0, errp);
        }
        to += received;
        size -= received;
    }
    return true;
}

static bool vu_check_header(BenchVhostUser *vu, VuRequest request,
                            const VuHeader *header, size_t size, GError **errp)
{
    if (header->request != request ||
        (header->flags & VU_VERSION_MASK) != VU_VERSION ||
        !(header->flags & VU_REPLY)) {
        vu->broken = true;
        return vu_error(vu, errp, "answered %s with message %u, flags 0x%x: it "
                        "is not a vhost-user back-end, or has a bug",
                        request_names[request], header->request,
                        header->flags);
    }
    if (header->size != size) {
        vu->broken = true;
        return vu_error(vu, errp, "answered %s with %u bytes instead of %zu: "
                        "it has no such thing, or a bug",
                        request_names[request], header->size, size);
    }
    return true;
}

/* @size: of the payload, which has to be as large as the answer's kind is */
static bool vu_receive_answer(BenchVhostUser *vu, VuRequest request,
                              void *payload, size_t size, GError **errp)
{
    gint64 deadline = g_get_monotonic_time() + ANSWER_US;
    VuHeader header;

    return vu_receive(vu, request, &header, sizeof(header), deadline, errp) &&
           vu_check_header(vu, request, &header, size, errp) &&
           vu_receive(vu, request, payload, size, deadline, errp);
}

/* A request that has an answer of its own */
static bool vu_ask(BenchVhostUser *vu, VuRequest request,
                   const VuPayload *payload, size_t size,
                   void *answer, size_t answer_size, GError **errp)
{
    VuHeader header = { request, VU_VERSION, size };

    return vu_send(vu, &header, payload, -1, errp) &&
           vu_receive_answer(vu, request, answer, answer_size, errp);
}

static bool vu_ask_u64(BenchVhostUser *vu, VuRequest request, uint64_t *value,
                       GError **errp)
{
    return vu_ask(vu, request, NULL, 0, value, sizeof(*value), errp);
}

/* A request that has none, unless one was agreed upon */
static bool vu_tell(BenchVhostUser *vu, VuRequest request,
                    const VuPayload *payload, size_t size, int fd,
                    GError **errp)
{
    VuHeader header = {
        request, VU_VERSION | (vu->acknowledges ? VU_NEED_REPLY : 0), size
    };
    uint64_t result;

    if (!vu_send(vu, &header, payload, fd, errp)) {
        return false;
    }
    if (!vu->acknowledges) {
        return true;
    }
    if (!vu_receive_answer(vu, request, &result, sizeof(result), errp)) {
        return false;
    }
    if (result) {
        return vu_error(vu, errp, "refused %s: see what it says itself",
                        request_names[request]);
    }
    return true;
}

static bool vu_tell_u64(BenchVhostUser *vu, VuRequest request, uint64_t value,
                        int fd, GError **errp)
{
    VuPayload payload = { .u64 = value };

    return vu_tell(vu, request, &payload, sizeof(value), fd, errp);
}

static bool vu_tell_state(BenchVhostUser *vu, VuRequest request, unsigned index,
                          unsigned num, GError **errp)
{
    VuPayload payload = { .state = { .index = index, .num = num } };

    return vu_tell(vu, request, &payload, sizeof(payload.state), -1, errp);
}

/*
 * The process
 */

/*
 * All threads of the process serve, as far as one can know.  A thread may end
 * while it is looked at: then it is left out.
 */
static void vu_find_threads(BenchVhostUser *vu)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/task", (int)vu->dev.pid);
    GDir *dir;
    const char *entry;

    g_array_set_size(vu->dev.threads, 0);
    dir = vu->dev.pid ? g_dir_open(path, 0, NULL) : NULL;
    if (!dir) {
        return;
    }
    while ((entry = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, entry, "comm", NULL);
        g_autofree char *name = NULL;

        if (g_file_get_contents(file, &name, NULL, NULL)) {
            bench_device_add_thread(&vu->dev, g_strchomp(name),
                                    g_ascii_strtoll(entry, NULL, 10));
        }
    }
    g_dir_close(dir);
}

/*
 * The kernel tells who called listen(2), and 0 if that is in a container that
 * cannot be looked into.
 */
static void vu_find_process(BenchVhostUser *vu)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);

    if (!getsockopt(vu->fd, SOL_SOCKET, SO_PEERCRED, &peer, &size)) {
        vu->dev.pid = peer.pid;
    }
    vu_find_threads(vu);
}

/* Threads that are made meanwhile, by one not held yet, run: see vu_resume() */
static bool vu_hold(BenchVhostUser *vu, GError **errp)
{
    GArray *threads = vu->dev.threads;

    if (!vu->hold) {
        return true;
    }
    if (!threads->len) {
        return vu_error(vu, errp, "cannot be held, as its process is not to be "
                        "seen from here: run both in one container");
    }
    while (vu->num_held < threads->len) {
        pid_t tid = g_array_index(threads, BenchThread, vu->num_held).tid;
        g_autoptr(GError) error = NULL;

        if (bench_thread_freeze(tid, &error)) {
            vu->num_held++;
        } else if (bench_thread_is_there(vu->dev.pid, tid)) {
            g_propagate_error(errp, g_steal_pointer(&error));
            return false;
        } else {
            g_array_remove_index(threads, vu->num_held);
        }
    }
    return true;
}

static bool vu_release(BenchVhostUser *vu, GError **errp)
{
    bool ok = true;

    while (vu->num_held) {
        pid_t tid = g_array_index(vu->dev.threads, BenchThread,
                                  --vu->num_held).tid;

        ok = bench_thread_thaw(tid, ok ? errp : NULL) && ok;
    }
    return ok;
}

/*
 * Coming up
 */

/* Without the time-out, connecting to a server that accepts nobody hangs. */
static bool vu_connect(BenchVhostUser *vu, GError **errp)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    struct timeval timeout = { .tv_sec = ANSWER_US / G_USEC_PER_SEC };
    int result;

    if (strlen(vu->path) >= sizeof(addr.sun_path)) {
        return vu_error(vu, errp, "cannot be reached, as a socket's path has "
                        "at most %zu bytes: make a shorter link to it",
                        sizeof(addr.sun_path) - 1);
    }
    strcpy(addr.sun_path, vu->path);
    vu->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (vu->fd < 0 || setsockopt(vu->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout,
                                 sizeof(timeout)) < 0) {
        return vu_error(vu, errp, "needs a socket: %s", g_strerror(errno));
    }
    do {
        result = connect(vu->fd, (struct sockaddr *)&addr, sizeof(addr));
    } while (result < 0 && errno == EINTR);
    if (result < 0) {
        return vu_error(vu, errp, "cannot be connected to: %s: start it, with "
                        "this socket to listen on, and rights for this user",
                        errno == EAGAIN ? "it accepts nobody"
                                        : g_strerror(errno));
    }
    return true;
}

static bool vu_negotiate_protocol(BenchVhostUser *vu, uint64_t features,
                                  GError **errp)
{
    uint64_t offered = 0;

    if (features >> VU_F_PROTOCOL_FEATURES & 1 &&
        !vu_ask_u64(vu, VU_GET_PROTOCOL_FEATURES, &offered, errp)) {
        return false;
    }
    if (!(offered & VU_PROTOCOL_CONFIG)) {
        return vu_error(vu, errp, "does not offer the protocol feature CONFIG, "
                        "so that the disk's size cannot be known: use one for "
                        "virtio-blk");
    }
    vu->protocol = offered & (VU_PROTOCOL_MQ | VU_PROTOCOL_REPLY_ACK |
                              VU_PROTOCOL_CONFIG);
    return vu_tell_u64(vu, VU_SET_PROTOCOL_FEATURES, vu->protocol, -1, errp);
}

static bool vu_read_config(BenchVhostUser *vu, struct virtio_blk_config *config,
                           GError **errp)
{
    VuPayload payload = { .config.size = CONFIG_SIZE };

    if (!vu_ask(vu, VU_GET_CONFIG, &payload, sizeof(payload.config),
                &payload.config, sizeof(payload.config), errp)) {
        return false;
    }
    memcpy(config, payload.config.space, CONFIG_SIZE);
    return true;
}

static bool vu_set_capacity(BenchVhostUser *vu, uint64_t sectors, GError **errp)
{
    if (!sectors) {
        return vu_error(vu, errp, "has an empty disk: give it one with data");
    }
    if (sectors > INT64_MAX / 512) {
        return vu_error(vu, errp, "tells of %" G_GUINT64_FORMAT " sectors, "
                        "more than a disk can have: it is not for virtio-blk, "
                        "or has a bug", sectors);
    }
    vu->dev.capacity = sectors;
    return true;
}

/*
 * Both layers have a say: the protocol, in how many queues the back-end can
 * hold, and the disk, in how many it has.
 */
static bool vu_count_queues(BenchVhostUser *vu, uint64_t features,
                            unsigned of_disk, unsigned *num, GError **errp)
{
    uint64_t of_backend;

    *num = 1;
    if (!(vu->protocol & VU_PROTOCOL_MQ)) {
        return true;
    }
    if (!vu_ask_u64(vu, VU_GET_QUEUE_NUM, &of_backend, errp)) {
        return false;
    }
    if (features >> BENCH_F_MQ & 1) {
        *num = MIN(MIN(of_backend, of_disk), QUEUES_LIMIT);
    } else {
        *num = MIN(of_backend, 1);
    }
    return true;
}

static bool vu_set_up(BenchVhostUser *vu, const BenchWish *wish, GError **errp)
{
    unsigned size = wish->queue_size ? QUEUE_SIZE_LIMIT : QUEUE_SIZE_DEFAULT;
    struct virtio_blk_config config = { 0 };
    uint64_t features;
    unsigned num;

    return vu_connect(vu, errp) &&
           vu_ask_u64(vu, VU_GET_FEATURES, &features, errp) &&
           vu_negotiate_protocol(vu, features, errp) &&
           vu_tell(vu, VU_SET_OWNER, NULL, 0, -1, errp) &&
           vu_read_config(vu, &config, errp) &&
           vu_set_capacity(vu, GUINT64_FROM_LE(config.capacity), errp) &&
           vu_count_queues(vu, features, GUINT16_FROM_LE(config.num_queues),
                           &num, errp) &&
           bench_device_negotiate(&vu->dev, features, wish, errp) &&
           bench_device_set_queues(&vu->dev, wish, num, size, errp);
}

/*
 * Starting
 */

/*
 * Acknowledgements are asked for from here on only: there are back-ends that
 * know that they agreed to them not before the features are set.
 */
static bool vu_set_features(BenchVhostUser *vu, GError **errp)
{
    uint64_t features = vu->dev.features | 1ull << VU_F_PROTOCOL_FEATURES;

    if (!vu_tell_u64(vu, VU_SET_FEATURES, features, -1, errp)) {
        return false;
    }
    vu->acknowledges = vu->protocol & VU_PROTOCOL_REPLY_ACK;
    return true;
}

/* User addresses are ours, and mean something to the back-end only as keys. */
static uint64_t user_addr(const BenchMemory *mem, uint64_t guest_addr)
{
    return (uintptr_t)mem->host + guest_addr;
}

static bool vu_share_memory(BenchVhostUser *vu, GError **errp)
{
    const BenchMemory *mem = vu->dev.mem;
    VuPayload payload = {
        .memory = {
            .num_regions = 1,
            .size = mem->size,
            .user_addr = user_addr(mem, 0),
        },
    };

    return vu_tell(vu, VU_SET_MEM_TABLE, &payload, sizeof(payload.memory),
                   mem->fd, errp);
}

static bool vu_make_notifiers(BenchVhostUser *vu, BenchQueue *queue,
                              GError **errp)
{
    queue->kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    queue->call_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (queue->kick_fd < 0 || queue->call_fd < 0) {
        return vu_error(vu, errp, "needs two eventfds per queue: %s",
                        g_strerror(errno));
    }
    return true;
}

static bool vu_set_vring_num(BenchVhostUser *vu, unsigned index, unsigned size,
                             GError **errp)
{
    if (vu_tell_state(vu, VU_SET_VRING_NUM, index, size, errp)) {
        return true;
    }
    if (!vu->broken) {
        g_prefix_error(errp, "a smaller queue than %u entries may do: ", size);
    }
    return false;
}

static bool vu_set_vring_addr(BenchVhostUser *vu, unsigned index, GError **errp)
{
    const BenchMemory *mem = vu->dev.mem;
    const BenchQueue *queue = &vu->dev.queues[index];
    VuPayload payload = {
        .addr = {
            .index = index,
            .desc_user_addr = user_addr(mem, queue->desc),
            .used_user_addr = user_addr(mem, queue->used),
            .avail_user_addr = user_addr(mem, queue->avail),
        },
    };

    return vu_tell(vu, VU_SET_VRING_ADDR, &payload, sizeof(payload.addr), -1,
                   errp);
}

/*
 * Where the back-end begins: at 0.  In a packed ring both positions, in 16 bits
 * each, have the wrap counter beside them, which is 1 in the first lap.
 */
static unsigned vu_base(const BenchVhostUser *vu)
{
    return bench_device_has(&vu->dev, BENCH_F_RING_PACKED) ? 0x80008000 : 0;
}

/* The kick comes last, as it lets the back-end begin. */
static bool vu_start_queue(BenchVhostUser *vu, unsigned index, GError **errp)
{
    BenchQueue *queue = &vu->dev.queues[index];

    if (!vu_make_notifiers(vu, queue, errp) ||
        !vu_set_vring_num(vu, index, queue->size, errp) ||
        !vu_tell_state(vu, VU_SET_VRING_BASE, index, vu_base(vu), errp) ||
        !vu_set_vring_addr(vu, index, errp) ||
        !vu_tell_u64(vu, VU_SET_VRING_CALL, index, queue->call_fd, errp)) {
        return false;
    }
    vu->num_started = index + 1;
    return vu_tell_u64(vu, VU_SET_VRING_KICK, index, queue->kick_fd, errp);
}

/*
 * Back-ends carry out one message after the other.  Thus an answer shows that
 * all before it were swallowed, and that no "call" of theirs is outstanding:
 * libvhost-user makes one when it gets to know the eventfd.
 */
static bool vu_settle(BenchVhostUser *vu, GError **errp)
{
    uint64_t features;

    if (!vu_ask_u64(vu, VU_GET_FEATURES, &features, errp)) {
        g_prefix_error(errp, "after the queues were handed over: ");
        return false;
    }
    for (unsigned i = 0; i < vu->dev.num_queues; i++) {
        eventfd_t count;

        eventfd_read(vu->dev.queues[i].call_fd, &count);
    }
    return true;
}

static bool vu_start(BenchDevice *dev, GError **errp)
{
    BenchVhostUser *vu = vu_from_device(dev);

    if (!vu_set_features(vu, errp) || !vu_share_memory(vu, errp)) {
        return false;
    }
    for (unsigned i = 0; i < dev->num_queues; i++) {
        if (!vu_start_queue(vu, i, errp)) {
            return false;
        }
    }
    for (unsigned i = 0; i < dev->num_queues; i++) {
        if (!vu_tell_state(vu, VU_SET_VRING_ENABLE, i, 1, errp)) {
            return false;
        }
    }
    if (!vu_settle(vu, errp)) {
        return false;
    }
    vu_find_threads(vu);
    return vu_hold(vu, errp);
}

/*
 * While it runs, and the end
 */

/* Nothing disturbs here.  Threads may have come with the first requests. */
static bool vu_quiet(BenchDevice *dev, GError **errp)
{
    BenchVhostUser *vu = vu_from_device(dev);

    if (!vu_release(vu, errp)) {
        return false;
    }
    vu_find_threads(vu);
    return true;
}

static bool vu_resume(BenchDevice *dev, GError **errp)
{
    BenchVhostUser *vu = vu_from_device(dev);

    vu_find_threads(vu);
    return vu_hold(vu, errp);
}

static bool vu_alive(BenchDevice *dev, GError **errp)
{
    BenchVhostUser *vu = vu_from_device(dev);
    char byte;
    ssize_t received = recv(vu->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    if (received < 0 && (errno == EAGAIN || errno == EINTR)) {
        return true;
    }
    vu->broken = true;
    if (received > 0) {
        return vu_error(vu, errp, "sent a message that nobody asked for: it "
                        "has a bug");
    }
    return vu_error(vu, errp, "closed the connection while it was in use: see "
                    "what it says itself");
}

/*
 * A back-end hangs up when it has no request left and has unmapped the memory,
 * which is what has to be waited for.
 */
static void vu_hang_up(BenchVhostUser *vu)
{
    gint64 deadline = g_get_monotonic_time() + ANSWER_US;
    char rest[64];

    if (shutdown(vu->fd, SHUT_WR) < 0) {
        return;
    }
    while (vu_receive_some(vu, rest, sizeof(rest), deadline) > 0) {
        /* an answer that comes too late */
    }
}

static void vu_stop_queues(BenchVhostUser *vu)
{
    for (unsigned i = 0; i < vu->num_started && !vu->broken; i++) {
        VuPayload payload = { .state.index = i };
        struct vhost_vring_state base;

        vu_ask(vu, VU_GET_VRING_BASE, &payload, sizeof(payload.state), &base,
               sizeof(base), NULL);
    }
}

static void vu_free(BenchDevice *dev)
{
    BenchVhostUser *vu = vu_from_device(dev);

    vu_release(vu, NULL);
    if (vu->fd >= 0) {
        vu_stop_queues(vu);
        if (!vu->broken) {
            vu_hang_up(vu);
        }
        close(vu->fd);
    }
    bench_device_cleanup(dev);
    g_free(vu->path);
    g_free(vu);
}

static const BenchDeviceOps vu_ops = {
    .start = vu_start,
    .quiet = vu_quiet,
    .resume = vu_resume,
    .alive = vu_alive,
    .free = vu_free,
};

BenchDevice *bench_vhost_user_new(const char *path, const BenchWish *wish,
                                  bool hold, BenchMemory *mem, GError **errp)
{
    BenchVhostUser *vu = g_new0(BenchVhostUser, 1);

    bench_device_init(&vu->dev, &vu_ops, mem);
    vu->path = g_strdup(path);
    vu->fd = -1;
    vu->hold = hold;
    if (!vu_set_up(vu, wish, errp)) {
        vu_free(&vu->dev);
        return NULL;
    }
    vu_find_process(vu);
    return &vu->dev;
}
