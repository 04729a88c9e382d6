/*
 * 2.7.8.2-D-02 (MUST): As many bytes as the used length were written, from the first writable one
 * on.
 *
 * Seen with qemu 7.2.22.
 * Expected: completion.used_len <= max(written, 1)
 * Seen: used length 513, but only 0 bytes written from the start
 * Test:
 * conformance/test_both_rings.py::test_the_used_length_covers_only_bytes_that_were_written[split-
 * read-error], target qtest-pci
 *
 * Needs nothing but a C compiler and QEMU, on Linux:
 *     cc -o reproducer 01-used-length-of-failed-requests.c && ./reproducer
 * (or QEMU=/path/to/qemu-system-x86_64 ./reproducer)
 * Exit status: 0 if the device does what the test saw, 1 if it does not.
 *
 * As a test of QEMU, in tests/qtest: replace the first part by #include "qemu/osdep.h" and
 * #include "libqtest.h".
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- the functions of libqtest that the test calls */

typedef struct QTestState {
    pid_t pid;
    int fd, qmp;
    bool gone;
    char answer[1 << 14];
} QTestState;

static void g_usleep(unsigned long microseconds)
{
    usleep(microseconds);
}

static const bool crashes = false; /* in the test QEMU has ended */

/* Sends a command and returns its answer without "OK ". */
static const char *command(QTestState *s, const char *format, ...)
{
    struct pollfd readable = { .fd = s->fd, .events = POLLIN };
    size_t used = 0;
    va_list values;
    char *text;
    int length;

    va_start(values, format);
    length = vasprintf(&text, format, values);
    va_end(values);
    if (length < 0 || send(s->fd, text, length, MSG_NOSIGNAL) != length) {
        s->gone = true;
    }
    while (!s->gone) {
        if (used == sizeof(s->answer) || poll(&readable, 1, 10000) != 1 ||
            recv(s->fd, s->answer + used, 1, 0) != 1) {
            s->gone = true;
        } else if (s->answer[used++] == '\n') {
            s->answer[used - 1] = '\0';
            break;
        }
    }
    if (s->gone && !crashes) {
        printf("not reproduced: QEMU has ended, or does not answer\n");
        exit(1);
    }
    if (!s->gone && strncmp(s->answer, "OK", 2)) {
        printf("QEMU refused %.60s: %s\n", text, s->answer);
        exit(2);
    }
    free(text);
    return s->gone || !s->answer[2] ? "" : s->answer + 3;
}

static QTestState *qtest_init(const char *arguments)
{
    QTestState *s = calloc(1, sizeof(*s));
    int commands[2], monitor[2];
    char *line;

    if (!s || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, commands) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, monitor) ||
        asprintf(&line, "exec \"${QEMU:-qemu-system-x86_64}\" %s -qtest stdio -qtest-log none"
                 " -chardev socket,id=qmp,fd=%d -mon chardev=qmp,mode=control",
                 arguments, monitor[1]) < 0) {
        perror("qtest_init");
        exit(2);
    }
    s->pid = fork();
    if (s->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(commands[1], 0);
        dup2(commands[1], 1);
        fcntl(monitor[1], F_SETFD, 0);
        execl("/bin/sh", "sh", "-c", line, NULL);
        _exit(127);
    }
    free(line);
    close(commands[1]);
    close(monitor[1]);
    s->fd = commands[0];
    s->qmp = monitor[0];
    if (s->pid < 0 || strcmp(command(s, "endianness\n"), "little")) {
        printf("not reproduced: QEMU does not run\n");
        exit(2);
    }
    dprintf(s->qmp, "{\"execute\": \"qmp_capabilities\"}\n"); /* nobody reads the answers */
    return s;
}

static inline void qtest_quit(QTestState *s)
{
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    free(s);
}

/* Waits for some seconds for the end of QEMU. libqtest itself ends a test then. */
static inline bool qtest_crashed(QTestState *s)
{
    int status = 0;

    for (int tries = 0; tries < 50 && !waitpid(s->pid, &status, WNOHANG); tries++) {
        g_usleep(100000);
    }
    return WIFSIGNALED(status);
}

#define OUT(name, type, verb) \
    static inline void name(QTestState *s, type address, uint32_t value) \
    { \
        command(s, verb " 0x%llx 0x%x\n", (unsigned long long)address, value); \
    }
#define IN(name, type, verb) \
    static inline uint64_t name(QTestState *s, type address) \
    { \
        return strtoull(command(s, verb " 0x%llx\n", (unsigned long long)address), NULL, 0); \
    }
OUT(qtest_outb, uint16_t, "outb")
OUT(qtest_outw, uint16_t, "outw")
OUT(qtest_outl, uint16_t, "outl")
OUT(qtest_writeb, uint64_t, "writeb")
OUT(qtest_writew, uint64_t, "writew")
OUT(qtest_writel, uint64_t, "writel")
IN(qtest_inb, uint16_t, "inb")
IN(qtest_inw, uint16_t, "inw")
IN(qtest_inl, uint16_t, "inl")
IN(qtest_readb, uint64_t, "readb")
IN(qtest_readw, uint64_t, "readw")
IN(qtest_readl, uint64_t, "readl")

static inline void qtest_memset(QTestState *s, uint64_t address, uint8_t byte, size_t size)
{
    command(s, "memset 0x%llx 0x%zx 0x%x\n", (unsigned long long)address, size, byte);
}

static inline void qtest_memwrite(QTestState *s, uint64_t address, const void *data, size_t size)
{
    char *text = malloc(2 * size + 1);

    for (size_t n = 0; text && n < size; n++) {
        sprintf(text + 2 * n, "%02x", ((const uint8_t *)data)[n]);
    }
    command(s, "write 0x%llx 0x%zx 0x%s\n", (unsigned long long)address, size, text);
    free(text);
}

static inline void qtest_memread(QTestState *s, uint64_t address, void *data, size_t size)
{
    const char *text = command(s, "read 0x%llx 0x%zx\n", (unsigned long long)address, size);

    memset(data, 0, size);
    for (size_t n = 0; n < size && strlen(text) >= 2 * n + 4; n++) {
        sscanf(text + 2 + 2 * n, "%2hhx", (uint8_t *)data + n);
    }
}

static inline void qtest_qmp_send(QTestState *s, const char *format, ...)
{
    va_list values;

    va_start(values, format);
    vdprintf(s->qmp, format, values);
    va_end(values);
    dprintf(s->qmp, "\n");
}

/* --- the files, which are deleted when the test ends */

static int new_file(off_t size)
{
    FILE *file = tmpfile();

    if (!file || ftruncate(fileno(file), size) || fcntl(fileno(file), F_SETFD, 0)) {
        perror("a temporary file");
        exit(2);
    }
    return fileno(file);
}

static inline void put(int file, off_t offset, const void *data, size_t size)
{
    if (pwrite(file, data, size, offset) != (ssize_t)size) {
        perror("a temporary file");
        exit(2);
    }
}

/* --- comparisons with the test */

static bool good = true;

static void compared(bool same, const char *words)
{
    printf("%sas in the test: %s\n", same ? "" : "not ", words);
    good = good && same;
}

/* Waits for some seconds until memory is as it was in the test. */
static inline bool await_memory(QTestState *s, uint64_t address, const void *data, size_t size)
{
    uint8_t seen[1024];

    for (int tries = 0; tries < (good ? 600 : 1); tries++) {
        qtest_memread(s, address, seen, size);
        if (!memcmp(seen, data, size)) {
            return true;
        }
        g_usleep(10000);
    }
    return false;
}

static inline void check_memory(QTestState *s, uint64_t address, const void *data, size_t size,
                                const char *words)
{
    compared(await_memory(s, address, data, size), words);
}

#define CHECK(read, value, words) \
    do { \
        bool same_ = (read) == (value); \
        for (int tries_ = 0; !same_ && good && tries_ < 60; tries_++) { \
            g_usleep(100000); \
            same_ = (read) == (value); \
        } \
        compared(same_, words); \
    } while (0)

/* --- the test */

static void test(void)
{
    static char arguments[987];
    int firmware = new_file(65536);
    int disk = new_file(8388608);
    QTestState *s;

    /* Firmware that halts the CPU: only the calls below touch the device. */
    put(firmware, 65520, "\xfa\xf4\xeb\xfd", 4);
    snprintf(arguments, sizeof(arguments),
        "-machine pc -m 64 -accel tcg -bios /proc/self/fd/%d "
        "-nodefaults -no-user-config -display none -vga none "
        "-blockdev '{\"driver\": \"file\", \"filename\": \"/proc/self/fd/%d\", \"node-name\": \"disk0-file\", \"discard\": \"unmap\", \"read-only\": false}' "
        "-blockdev '{\"driver\": \"raw\", \"file\": \"disk0-file\", \"node-name\": \"disk0-raw\", \"discard\": \"unmap\", \"read-only\": false}' "
        "-blockdev '{\"driver\": \"blkdebug\", \"image\": \"disk0-raw\", \"inject-error\": [{\"event\": \"none\", \"iotype\": \"read\", \"errno\": 5, \"once\": false, \"sector\": 64}], \"node-name\": \"disk0\", \"discard\": \"unmap\", \"read-only\": false}' "
        "-device '{\"driver\": \"virtio-blk-pci\", \"disable-legacy\": \"on\", \"disable-modern\": false, \"bus\": \"pci.0\", \"addr\": \"0x4\", \"id\": \"disk0\", \"drive\": \"disk0\", \"werror\": \"report\", \"rerror\": \"report\"}' ", firmware, disk);
    s = qtest_init(arguments);

    qtest_outl(s, 0xcf8, 0x80002014);
    qtest_outl(s, 0xcfc, 0xe0400000); /* place BAR 1 */
    qtest_outl(s, 0xcf8, 0x80002020);
    qtest_outl(s, 0xcfc, 0xe0404000); /* place BAR 4 */
    qtest_outl(s, 0xcf8, 0x80002004);
    qtest_outw(s, 0xcfc, 0x7); /* enable the device */
    qtest_outl(s, 0xcf8, 0x80002000);
    qtest_inl(s, 0xcfc); /* read pci at 0x0 as 0x10421af4 (32 bits) */
    qtest_outl(s, 0xcf8, 0x80002004);
    qtest_inb(s, 0xcfe); /* read pci at 0x6 as 0x10 (8 bits) */
    qtest_outl(s, 0xcf8, 0x80002034);
    qtest_inb(s, 0xcfc); /* read pci at 0x34 as 0x98 (8 bits) */
    qtest_outl(s, 0xcf8, 0x80002098);
    qtest_inw(s, 0xcfc); /* read pci at 0x98 as 0x8411 (16 bits) */
    qtest_outl(s, 0xcf8, 0x80002084);
    qtest_inw(s, 0xcfc); /* read pci at 0x84 as 0x7009 (16 bits) */
    qtest_outl(s, 0xcf8, 0x80002070);
    qtest_inw(s, 0xcfc); /* read pci at 0x70 as 0x6009 (16 bits) */
    qtest_outl(s, 0xcf8, 0x80002060);
    qtest_inw(s, 0xcfc); /* read pci at 0x60 as 0x5009 (16 bits) */
    qtest_outl(s, 0xcf8, 0x80002050);
    qtest_inw(s, 0xcfc); /* read pci at 0x50 as 0x4009 (16 bits) */
    qtest_outl(s, 0xcf8, 0x80002040);
    qtest_inw(s, 0xcfc); /* read pci at 0x40 as 0x9 (16 bits) */
    qtest_outl(s, 0xcf8, 0x80002080);
    qtest_inl(s, 0xcfc); /* read pci at 0x80 as 0x4 (32 bits) */
    qtest_writel(s, 0xe0404000, 0x0); /* wrote 0x0 to device_feature_select (32 bits) */
    qtest_readl(s, 0xe0404004); /* read device_feature as 0x30006e54 (32 bits) */
    qtest_writel(s, 0xe0404000, 0x1); /* wrote 0x1 to device_feature_select (32 bits) */
    qtest_readl(s, 0xe0404004); /* read device_feature as 0x101 (32 bits) */
    qtest_writeb(s, 0xe0404014, 0x0); /* wrote 0x0 to device_status (8 bits) */
    qtest_readb(s, 0xe0404014); /* read device_status as 0x0 (8 bits) */
    qtest_writeb(s, 0xe0404014, 0x1); /* wrote 0x1 to device_status (8 bits) */
    qtest_writeb(s, 0xe0404014, 0x3); /* wrote 0x3 to device_status (8 bits) */
    qtest_writel(s, 0xe0404000, 0x0); /* wrote 0x0 to device_feature_select (32 bits) */
    qtest_readl(s, 0xe0404004); /* read device_feature as 0x30006e54 (32 bits) */
    qtest_writel(s, 0xe0404000, 0x1); /* wrote 0x1 to device_feature_select (32 bits) */
    qtest_readl(s, 0xe0404004); /* read device_feature as 0x101 (32 bits) */
    qtest_writel(s, 0xe0404008, 0x0); /* wrote 0x0 to driver_feature_select (32 bits) */
    qtest_writel(s, 0xe040400c, 0x10006e54); /* wrote 0x10006e54 to driver_feature (32 bits) */
    qtest_writel(s, 0xe0404008, 0x1); /* wrote 0x1 to driver_feature_select (32 bits) */
    qtest_writel(s, 0xe040400c, 0x1); /* wrote 0x1 to driver_feature (32 bits) */
    qtest_readb(s, 0xe0404014); /* read device_status as 0x3 (8 bits) */
    qtest_writeb(s, 0xe0404014, 0xb); /* wrote 0xb to device_status (8 bits) */
    qtest_readb(s, 0xe0404014); /* read device_status as 0xb (8 bits) */
    qtest_writew(s, 0xe0404016, 0x0); /* wrote 0x0 to queue_select (16 bits) */
    qtest_readw(s, 0xe0404018); /* read queue_size as 0x100 (16 bits) */
    qtest_writel(s, 0xe0404008, 0x0); /* wrote 0x0 to driver_feature_select (32 bits) */
    qtest_readl(s, 0xe040400c); /* read driver_feature as 0x10006e54 (32 bits) */
    qtest_writel(s, 0xe0404008, 0x1); /* wrote 0x1 to driver_feature_select (32 bits) */
    qtest_readl(s, 0xe040400c); /* read driver_feature as 0x1 (32 bits) */
    qtest_memset(s, 0x100000, 0x0, 0x1000);
    qtest_memset(s, 0x101000, 0x0, 0x206);
    qtest_memset(s, 0x101208, 0x0, 0x806);
    qtest_writew(s, 0xe0404016, 0x0); /* wrote 0x0 to queue_select (16 bits) */
    qtest_writew(s, 0xe0404018, 0x100); /* wrote 0x100 to queue_size (16 bits) */
    qtest_writel(s, 0xe0404020, 0x100000); /* wrote 0x100000 to queue_desc (32 bits) */
    qtest_writel(s, 0xe0404024, 0x0); /* wrote 0x0 to queue_desc (32 bits) */
    qtest_writel(s, 0xe0404028, 0x101000); /* wrote 0x101000 to queue_driver (32 bits) */
    qtest_writel(s, 0xe040402c, 0x0); /* wrote 0x0 to queue_driver (32 bits) */
    qtest_writel(s, 0xe0404030, 0x101208); /* wrote 0x101208 to queue_device (32 bits) */
    qtest_writel(s, 0xe0404034, 0x0); /* wrote 0x0 to queue_device (32 bits) */
    qtest_readw(s, 0xe040401e); /* read queue_notify_off as 0x0 (16 bits) */
    qtest_writel(s, 0xe0404008, 0x0); /* wrote 0x0 to driver_feature_select (32 bits) */
    qtest_readl(s, 0xe040400c); /* read driver_feature as 0x10006e54 (32 bits) */
    qtest_writel(s, 0xe0404008, 0x1); /* wrote 0x1 to driver_feature_select (32 bits) */
    qtest_readl(s, 0xe040400c); /* read driver_feature as 0x1 (32 bits) */
    qtest_writew(s, 0xe040401c, 0x1); /* wrote 0x1 to queue_enable (16 bits) */
    qtest_writeb(s, 0xe0404014, 0xf); /* wrote 0xf to device_status (8 bits) */
    qtest_readb(s, 0xe0404014); /* read device_status as 0xf (8 bits) */
    qtest_memset(s, 0x101a10, 0xc5, 0x40);
    qtest_memwrite(s, 0x101a50, "\x00\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00", 16);
    qtest_memset(s, 0x101a60, 0xc5, 0x280);
    qtest_memwrite(s, 0x101ce0, "\xff", 1);
    qtest_memset(s, 0x101ce1, 0xc5, 0x40);
    qtest_memwrite(s, 0x100000, "\x50\x1a\x10\x00\x00\x00\x00\x00\x10\x00\x00\x00\x01\x00\x01\x00", 16);
    qtest_memwrite(s, 0x100010, "\xa0\x1a\x10\x00\x00\x00\x00\x00\x00\x02\x00\x00\x03\x00\x02\x00", 16);
    qtest_memwrite(s, 0x100020, "\xe0\x1c\x10\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00", 16);
    qtest_memwrite(s, 0x101004, "\x00\x00", 2);
    qtest_memwrite(s, 0x101002, "\x01\x00", 2);
    qtest_writew(s, 0xe0407000, 0x0); /* wrote 0x0 to notify at 0x0 (16 bits) */
    check_memory(s, 0x10120c,
        "\x00\x00\x00\x00\x01\x02\x00\x00", 8, "virtqueue 0: chain 0 is used, length 513");
    check_memory(s, 0x101ce0,
        "\x01", 1, "the status byte is 0x1");
    check_memory(s, 0x101aa0,
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5"
        "\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5\xc5", 512, "the first bytes of the 512 at 0x101aa0");
    qtest_quit(s);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    test();
    if (!good) {
        printf("not reproduced\n");
        return 1;
    }
    printf("reproduced: %s\n",
           "used length 513, but only 0 bytes written from the start");
    return 0;
}
