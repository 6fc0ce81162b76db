/* Remembers what a node has made durable, so that a test can cut the power.
 *
 * Preloaded into `holdfast node`. Keeps, outside the data directory, a mirror that holds exactly
 * what the node has fsynced: contents are copied when fsync or fdatasync of the file has returned,
 * names when fsync of their directory has. Everything else (written, created, renamed, removed and
 * not synced) is not in the mirror, and is gone or back again when the test replaces the data
 * directory by it. The mirror lives in the page cache, which survives kill -9.
 *
 * The root is the node's own directory (where node.toml lies); of it only the entry "data" counts.
 *
 *   MIRROR/map            lines "inode object": which object stands for which inode, last one wins
 *   MIRROR/objects/N      durable content of a file
 *   MIRROR/dirs/N         durable entries of a directory, lines "f|d object name"
 *   MIRROR/control        a page shared with the test: counters, and the order to hold every sync
 *
 * A file that was first opened by an earlier process is copied whole at its first sync. Writes
 * through a shared mapping cannot be seen; one that is made is counted as a problem, and the test
 * fails. Programs other than `holdfast node --config FILE` are left alone.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FDS_MAX 65536
#define BUCKETS 4096
#define RANGES_MAX 512

/* Shared with the test; the order is part of the agreement. */
struct control {
    _Atomic uint64_t writes;       /* seen in the data directory */
    _Atomic uint64_t file_syncs;   /* that returned to the program */
    _Atomic uint64_t dir_syncs;
    _Atomic uint64_t bytes;        /* copied into the mirror */
    _Atomic uint64_t problems;     /* things this shim cannot follow */
    _Atomic uint64_t hold;         /* set by the test: no sync begins while it is 1 */
    _Atomic uint64_t held;         /* syncs that began to wait */
};

struct range { off_t from, to; };

struct inode {
    ino_t ino;
    uint64_t object;
    int whole;                     /* all of it may differ from the mirror */
    int truncated;                 /* the mirror may be longer */
    struct range *ranges;          /* written since the last sync */
    int count;
    pthread_mutex_t syncing;       /* a sync returns only when its content is in the mirror */
    struct inode *next;
};

static char root[PATH_MAX + 8];       /* DIR/node-1/data */
static size_t root_len;
static char mirror[PATH_MAX];
static int active;
static struct control *control;
static int map_fd = -1;
static uint64_t next_object = 2;   /* 1 is the parent of the root */
static struct inode *buckets[BUCKETS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic unsigned char tracked[FDS_MAX];

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* ---- the shim's own calls go to the kernel, past the functions below ---- */

static int sys_open(const char *path, int flags) { return (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0644); }
static void sys_close(int fd) { syscall(SYS_close, fd); }

static int sys_write(int fd, const void *data, size_t size) {
    const char *at = data;
    while (size > 0) {
        ssize_t n = syscall(SYS_write, fd, at, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        at += n, size -= (size_t)n;
    }
    return 0;
}

static void problem(const char *what, const char *path) {
    char line[PATH_MAX + 64], file[PATH_MAX + 32];
    int saved = errno;
    atomic_fetch_add(&control->problems, 1);
    snprintf(file, sizeof file, "%s/problems", mirror);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    int size = snprintf(line, sizeof line, "%s: %s (errno %d)\n", what, path ? path : "-", saved);
    if (fd >= 0) { sys_write(fd, line, (size_t)size); sys_close(fd); }
    errno = saved;
}

/* ---- inodes and objects (call with the lock) ---- */

static struct inode *find(ino_t ino) {
    struct inode *at = buckets[ino % BUCKETS];
    while (at && at->ino != ino) at = at->next;
    return at;
}

static struct inode *assign(ino_t ino, uint64_t object) {
    struct inode *at = find(ino);
    if (!at) {
        at = calloc(1, sizeof *at);
        pthread_mutex_init(&at->syncing, NULL);
        at->ino = ino;
        at->next = buckets[ino % BUCKETS];
        buckets[ino % BUCKETS] = at;
    }
    at->object = object;
    at->whole = at->truncated = 1;
    at->count = 0;
    return at;
}

/* A new file or directory: inode numbers are used again, objects are not. */
static struct inode *fresh(ino_t ino) {
    char line[64];
    struct inode *at = assign(ino, next_object++);
    int size = snprintf(line, sizeof line, "%llu %llu\n", (unsigned long long)ino, (unsigned long long)at->object);
    if (map_fd >= 0 && sys_write(map_fd, line, (size_t)size)) problem("map", NULL);
    return at;
}

static struct inode *known(ino_t ino) {
    struct inode *at = find(ino);
    return at ? at : fresh(ino);
}

static void object_path(char *out, const char *kind, uint64_t object) {
    snprintf(out, PATH_MAX + 64, "%s/%s/%llu", mirror, kind, (unsigned long long)object);
}

/* ---- copying ---- */

static void copy_range(int from, int to, off_t at, off_t end) {
    static __thread char buffer[1 << 16];
    while (at < end) {
        size_t want = (size_t)(end - at) < sizeof buffer ? (size_t)(end - at) : sizeof buffer;
        ssize_t n = syscall(SYS_pread64, from, buffer, want, at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return; /* shorter by now: what is not there cannot be durable */
        if (syscall(SYS_pwrite64, to, buffer, (size_t)n, at) != n) { problem("mirror is full", NULL); return; }
        atomic_fetch_add(&control->bytes, (uint64_t)n);
        at += n;
    }
}

/* The content of an open file became durable. */
static void mirror_file(int fd, const struct stat *st) {
    char path[PATH_MAX + 64], self[64];
    struct range *ranges = NULL;
    pthread_mutex_lock(&lock);
    struct inode *at = known(st->st_ino);
    pthread_mutex_unlock(&lock);
    pthread_mutex_lock(&at->syncing);
    pthread_mutex_lock(&lock);
    int whole = at->whole, truncated = at->truncated, count = at->count;
    ranges = at->ranges;
    at->ranges = NULL, at->count = at->whole = at->truncated = 0;
    object_path(path, "objects", at->object);
    pthread_mutex_unlock(&lock);
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    int from = sys_open(self, O_RDONLY), to = sys_open(path, O_WRONLY | O_CREAT);
    if (from < 0 || to < 0) {
        problem("a synced file cannot be copied", path);
    } else {
        struct stat now;
        if (truncated && fstat(fd, &now) == 0 && syscall(SYS_ftruncate, to, now.st_size)) problem("ftruncate", path);
        if (whole) copy_range(from, to, 0, (off_t)1 << 62);
        else for (int i = 0; i < count; i++) copy_range(from, to, ranges[i].from, ranges[i].to);
    }
    if (from >= 0) sys_close(from);
    if (to >= 0) sys_close(to);
    free(ranges);
    pthread_mutex_unlock(&at->syncing);
}

/* The names in a directory became durable. `only`: of the root's parent just this entry counts. */
static void mirror_dir(const char *dir, uint64_t object, const char *only) {
    char path[PATH_MAX + 64], new[PATH_MAX + 96], entry[PATH_MAX + 512], line[600];
    object_path(path, "dirs", object);
    snprintf(new, sizeof new, "%s.%ld", path, (long)syscall(SYS_gettid));
    int out = sys_open(new, O_WRONLY | O_CREAT | O_TRUNC);
    DIR *list = opendir(dir);
    if (out < 0 || !list) {
        problem("a synced directory cannot be read", dir);
    } else {
        struct dirent *found;
        while ((found = readdir(list))) {
            struct stat st;
            if (!strcmp(found->d_name, ".") || !strcmp(found->d_name, "..") || (only && strcmp(found->d_name, only))) continue;
            snprintf(entry, sizeof entry, "%s/%s", dir, found->d_name);
            if (lstat(entry, &st)) continue; /* removed meanwhile */
            pthread_mutex_lock(&lock);
            uint64_t of = known(st.st_ino)->object;
            pthread_mutex_unlock(&lock);
            int size = snprintf(line, sizeof line, "%c %llu %s\n", S_ISDIR(st.st_mode) ? 'd' : 'f', (unsigned long long)of, found->d_name);
            if (sys_write(out, line, (size_t)size)) problem("mirror is full", path);
        }
    }
    if (list) closedir(list);
    if (out >= 0) sys_close(out);
    if (syscall(SYS_renameat, AT_FDCWD, new, AT_FDCWD, path)) problem("rename", path);
}

/* ---- which paths count ---- */

static int below(const char *path) {
    return !strncmp(path, root, root_len) && (path[root_len] == 0 || path[root_len] == '/');
}

/* Where `path` leads, resolved just enough: 2 the root's parent, 1 below the root, 0 elsewhere. */
static int place(int dirfd, const char *path, char *out) {
    if (!active || !path) return 0;
    if (path[0] == '/') {
        if (strlen(path) >= PATH_MAX) return 0;
        strcpy(out, path);
    } else {
        char link[64], base[PATH_MAX];
        if (dirfd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        ssize_t n = readlink(link, base, sizeof base - 1);
        if (n <= 0) return 0;
        base[n] = 0;
        if ((size_t)snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    for (size_t n = strlen(out); n > 1 && out[n - 1] == '/'; n--) out[n - 1] = 0;
    if (below(out)) return 1;
    const char *name = strrchr(root, '/');
    return strlen(out) == (size_t)(name - root) && !strncmp(out, root, (size_t)(name - root)) ? 2 : 0;
}

static void forget_fd(int fd) {
    if (fd >= 0 && fd < FDS_MAX) atomic_store(&tracked[fd], 0);
}

static int is_tracked(int fd) {
    return active && fd >= 0 && fd < FDS_MAX && atomic_load(&tracked[fd]);
}

static void opened(int fd, int where, int existed, int flags) {
    int saved = errno;
    struct stat st;
    forget_fd(fd);
    if (where && fd >= FDS_MAX) problem("descriptor out of range", NULL);
    else if (where && fd >= 0 && fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) {
        atomic_store(&tracked[fd], (unsigned char)where);
        if (S_ISREG(st.st_mode)) {
            pthread_mutex_lock(&lock);
            if (!existed) fresh(st.st_ino);
            else if (flags & O_TRUNC) { struct inode *at = known(st.st_ino); at->whole = at->truncated = 1; }
            pthread_mutex_unlock(&lock);
        }
    }
    errno = saved;
}

static int exists(const char *path) {
    int saved = errno;
    struct stat st;
    int there = lstat(path, &st) == 0;
    errno = saved;
    return there;
}

static void wrote(int fd, off_t from, off_t to) {
    int saved = errno;
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        atomic_fetch_add(&control->writes, 1);
        pthread_mutex_lock(&lock);
        struct inode *at = known(st.st_ino);
        if (!at->ranges) at->ranges = calloc(RANGES_MAX, sizeof *at->ranges);
        struct range *last = at->count ? &at->ranges[at->count - 1] : NULL;
        if (from < 0) at->whole = at->truncated = 1;
        else if (last && from >= last->from && from <= last->to) last->to = to > last->to ? to : last->to;
        else if (at->count < RANGES_MAX) at->ranges[at->count++] = (struct range){from, to};
        else at->whole = 1;
        pthread_mutex_unlock(&lock);
    }
    errno = saved;
}

/* A write at the file's position, which has moved on by n. */
static void wrote_here(int fd, ssize_t n) {
    if (n <= 0 || !is_tracked(fd)) return;
    off_t end = lseek(fd, 0, SEEK_CUR);
    wrote(fd, end < n ? -1 : end - n, end);
}

static void synced(int fd) {
    int saved = errno;
    struct stat st;
    if (fstat(fd, &st) == 0) {
        if (S_ISDIR(st.st_mode)) {
            char link[64], dir[PATH_MAX], where[PATH_MAX];
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            ssize_t n = readlink(link, dir, sizeof dir - 1);
            if (n > 0) {
                dir[n] = 0;
                int kind = place(AT_FDCWD, dir, where);
                uint64_t object = 1;
                if (kind == 1) {
                    pthread_mutex_lock(&lock);
                    object = known(st.st_ino)->object;
                    pthread_mutex_unlock(&lock);
                }
                if (kind) mirror_dir(dir, object, kind == 2 ? strrchr(root, '/') + 1 : NULL);
            }
            atomic_fetch_add(&control->dir_syncs, 1);
        } else if (S_ISREG(st.st_mode)) {
            mirror_file(fd, &st);
            atomic_fetch_add(&control->file_syncs, 1);
        }
    }
    errno = saved;
}

static void wait_while_held(void) {
    if (!atomic_load(&control->hold)) return;
    atomic_fetch_add(&control->held, 1);
    while (atomic_load(&control->hold)) {
        struct timespec pause = {0, 2000000};
        nanosleep(&pause, NULL);
    }
}

/* ---- start ---- */

static void load_map(void) {
    char path[PATH_MAX + 64];
    unsigned long long ino, object;
    snprintf(path, sizeof path, "%s/map", mirror);
    int fd = sys_open(path, O_RDONLY);
    if (fd >= 0) {
        FILE *file = fdopen(fd, "r");
        while (file && fscanf(file, "%llu %llu", &ino, &object) == 2) {
            assign((ino_t)ino, object);
            if (object >= next_object) next_object = object + 1;
        }
        if (file) fclose(file);
    }
    map_fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

/* What is there when a mirror begins is taken as durable: it is what the last cut left. */
static void take_all(const char *dir, uint64_t object, const char *only) {
    DIR *list = opendir(dir);
    struct dirent *found;
    if (!list) return;
    while ((found = readdir(list))) {
        char entry[PATH_MAX + 512];
        struct stat st;
        if (!strcmp(found->d_name, ".") || !strcmp(found->d_name, "..") || (only && strcmp(found->d_name, only))) continue;
        snprintf(entry, sizeof entry, "%s/%s", dir, found->d_name);
        if (lstat(entry, &st)) continue;
        uint64_t of = fresh(st.st_ino)->object;
        if (S_ISDIR(st.st_mode)) {
            take_all(entry, of, NULL);
        } else if (S_ISREG(st.st_mode)) {
            int fd = sys_open(entry, O_RDONLY);
            if (fd >= 0) { mirror_file(fd, &st); sys_close(fd); }
        }
    }
    closedir(list);
    mirror_dir(dir, object, only);
}

static void setup(const char *config) {
    const char *base = getenv("POWERCUT_MIRROR");
    char dir[PATH_MAX], path[PATH_MAX + 64];
    if (!base || !realpath(config, dir)) return;
    *strrchr(dir, '/') = 0;
    snprintf(root, sizeof root, "%s/data", dir);
    root_len = strlen(root);
    snprintf(mirror, sizeof mirror, "%s%s", base, strrchr(dir, '/'));
    snprintf(path, sizeof path, "%s/map", mirror);
    int begins = access(path, F_OK) != 0;
    syscall(SYS_mkdirat, AT_FDCWD, mirror, 0755);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", mirror, i ? "objects" : "dirs");
        syscall(SYS_mkdirat, AT_FDCWD, path, 0755);
    }
    snprintf(path, sizeof path, "%s/control", mirror);
    int fd = sys_open(path, O_RDWR | O_CREAT);
    if (fd < 0 || syscall(SYS_ftruncate, fd, 4096)) _exit(99);
    control = (void *)syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    sys_close(fd);
    if (control == MAP_FAILED) _exit(99);
    load_map();
    if (begins) take_all(dir, 1, "data");
    active = 1;
}

__attribute__((constructor)) static void start(void) {
    static char line[1 << 16];
    int fd = sys_open("/proc/self/cmdline", O_RDONLY);
    if (fd < 0) return;
    ssize_t size = read(fd, line, sizeof line - 1);
    sys_close(fd);
    const char *config = NULL;
    int node = 0, place_of = 0;
    for (char *at = line; size > 0 && at < line + size; at += strlen(at) + 1, place_of++) {
        if (place_of == 1) node = !strcmp(at, "node");
        if (!strcmp(at, "--config") && at + strlen(at) + 1 < line + size) config = at + strlen(at) + 1;
    }
    if (node && config) setup(config);
}

/* ---- the functions that stand before libc's ---- */

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list args; va_start(args, flags); mode = va_arg(args, mode_t); va_end(args); }

#define OPEN_BODY(dirfd, path, flags, call) \
    char full[PATH_MAX]; \
    int where = place(dirfd, path, full); \
    int existed = !where || exists(full); \
    int fd = call; \
    if (fd >= 0 && active) opened(fd, where, existed, flags); \
    return fd;

int open(const char *path, int flags, ...) { MODE(flags) REAL(open); OPEN_BODY(AT_FDCWD, path, flags, real(path, flags, mode)) }
int open64(const char *path, int flags, ...) { MODE(flags) REAL(open64); OPEN_BODY(AT_FDCWD, path, flags, real(path, flags, mode)) }
int openat(int dirfd, const char *path, int flags, ...) { MODE(flags) REAL(openat); OPEN_BODY(dirfd, path, flags, real(dirfd, path, flags, mode)) }
int openat64(int dirfd, const char *path, int flags, ...) { MODE(flags) REAL(openat64); OPEN_BODY(dirfd, path, flags, real(dirfd, path, flags, mode)) }
int creat(const char *path, mode_t mode) { REAL(creat); OPEN_BODY(AT_FDCWD, path, O_TRUNC, real(path, mode)) }
int creat64(const char *path, mode_t mode) { REAL(creat64); OPEN_BODY(AT_FDCWD, path, O_TRUNC, real(path, mode)) }

/* What goes through stdio is written inside libc and seen only when it is synced, whole. */
#define FOPEN(name) \
FILE *name(const char *path, const char *how) { \
    REAL(name); \
    char full[PATH_MAX]; \
    int where = place(AT_FDCWD, path, full); \
    int existed = !where || exists(full); \
    FILE *file = real(path, how); \
    if (file && active) opened(fileno(file), where, existed, O_TRUNC); \
    return file; \
}
FOPEN(fopen)
FOPEN(fopen64)

int close(int fd) { REAL(close); forget_fd(fd); return real(fd); }
static int copied(int from, int to) {
    if (active && to >= 0 && to < FDS_MAX) atomic_store(&tracked[to], from >= 0 && from < FDS_MAX ? atomic_load(&tracked[from]) : 0);
    return to;
}
int dup(int fd) { REAL(dup); return copied(fd, real(fd)); }
int dup2(int fd, int to) { REAL(dup2); return copied(fd, real(fd, to)); }
int dup3(int fd, int to, int flags) { REAL(dup3); return copied(fd, real(fd, to, flags)); }
#define FCNTL(name) \
int name(int fd, int what, ...) { \
    REAL(name); \
    va_list args; va_start(args, what); void *value = va_arg(args, void *); va_end(args); \
    int result = real(fd, what, value); \
    return what == F_DUPFD || what == F_DUPFD_CLOEXEC ? copied(fd, result) : result; \
}
FCNTL(fcntl)
FCNTL(fcntl64)

ssize_t write(int fd, const void *data, size_t size) { REAL(write); ssize_t n = real(fd, data, size); wrote_here(fd, n); return n; }
ssize_t writev(int fd, const struct iovec *data, int count) { REAL(writev); ssize_t n = real(fd, data, count); wrote_here(fd, n); return n; }
#define PWRITE(name, type, size_type, off_type) \
ssize_t name(int fd, type data, size_type size, off_type at) { REAL(name); ssize_t n = real(fd, data, size, at); if (n > 0 && is_tracked(fd)) wrote(fd, at, at + n); return n; }
PWRITE(pwrite, const void *, size_t, off_t)
PWRITE(pwrite64, const void *, size_t, off64_t)
PWRITE(pwritev, const struct iovec *, int, off_t)
PWRITE(pwritev64, const struct iovec *, int, off64_t)

#define RESIZE(name, off_type) \
int name(int fd, off_type size) { REAL(name); int r = real(fd, size); if (r == 0 && is_tracked(fd)) wrote(fd, -1, -1); return r; }
RESIZE(ftruncate, off_t)
RESIZE(ftruncate64, off64_t)
#define TRUNCATE(name, off_type) \
int name(const char *path, off_type size) { \
    REAL(name); char full[PATH_MAX]; \
    if (place(AT_FDCWD, path, full)) problem("truncate by path", path); \
    return real(path, size); \
}
TRUNCATE(truncate, off_t)
TRUNCATE(truncate64, off64_t)
/* Room that does not change the size has nothing to mirror. */
#define ALLOCATE(name, off_type) \
int name(int fd, int mode, off_type at, off_type size) { REAL(name); int r = real(fd, mode, at, size); if (r == 0 && !(mode & FALLOC_FL_KEEP_SIZE) && is_tracked(fd)) wrote(fd, -1, -1); return r; }
ALLOCATE(fallocate, off_t)
ALLOCATE(fallocate64, off64_t)
#define POSIX_ALLOCATE(name, off_type) \
int name(int fd, off_type at, off_type size) { REAL(name); int r = real(fd, at, size); if (r == 0 && is_tracked(fd)) wrote(fd, -1, -1); return r; }
POSIX_ALLOCATE(posix_fallocate, off_t)
POSIX_ALLOCATE(posix_fallocate64, off64_t)

#define SYNC(name) \
int name(int fd) { REAL(name); int ours = is_tracked(fd); if (ours) wait_while_held(); int r = real(fd); if (r == 0 && ours) synced(fd); return r; }
SYNC(fsync)
SYNC(fdatasync)
void sync(void) { REAL(sync); if (active) problem("sync()", NULL); real(); }
int syncfs(int fd) { REAL(syncfs); if (is_tracked(fd)) problem("syncfs", NULL); return real(fd); }

/* A directory is made: its inode number may have been something else's. */
static void made(int result, int dirfd, const char *path) {
    char full[PATH_MAX];
    struct stat st;
    if (result == 0 && place(dirfd, path, full) == 1 && lstat(full, &st) == 0) {
        pthread_mutex_lock(&lock);
        fresh(st.st_ino);
        pthread_mutex_unlock(&lock);
    }
}
int mkdir(const char *path, mode_t mode) { REAL(mkdir); int r = real(path, mode); made(r, AT_FDCWD, path); return r; }
int mkdirat(int dirfd, const char *path, mode_t mode) { REAL(mkdirat); int r = real(dirfd, path, mode); made(r, dirfd, path); return r; }

#define MMAP(name, off_type) \
void *name(void *at, size_t size, int prot, int flags, int fd, off_type from) { \
    REAL(name); \
    if ((prot & PROT_WRITE) && (flags & MAP_SHARED) && is_tracked(fd)) problem("writable shared mapping", NULL); \
    return real(at, size, prot, flags, fd, from); \
}
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)
/* rename, link, unlink and rmdir need no function: names count as they are when their directory is synced. */
