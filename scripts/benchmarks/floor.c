/* What no program can go below: the system calls of a fresh HTTP check in a loop of C, without reading the answer.
 * floor RATE TARGETS REPORT HOST:PORT…  checks the addresses in turn, RATE times a second on an even grid, until
 * SIGTERM; then it writes each check to the file REPORT as `reports.keep` does, or nowhere when that is "-". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MOST_ADDRESSES 64
#define MOST_FILES 65536
#define MOST_CHECKS 2000000

/* Stamps are of CLOCK_MONOTONIC, in seconds; first: of the answer's first byte. */
struct check { long target; double due, started, sent, first; };

static struct sockaddr_in addresses[MOST_ADDRESSES];
static struct check flying[MOST_FILES], *kept;
static long keeps;
static volatile sig_atomic_t stopped;

static void stop(int number) { stopped = number; }

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void set(int timer, double due) {
    struct itimerspec at = {.it_value = {(time_t)due, (long)((due - (time_t)due) * 1e9)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void begin(int loop, struct sockaddr_in *address, long target, double due) {
    double started = now(CLOCK_MONOTONIC);
    int file = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (file < 0 || file >= MOST_FILES) exit(1);
    struct epoll_event both = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.fd = file};
    flying[file] = (struct check){target, due, started, 0, 0};
    connect(file, (struct sockaddr *)address, sizeof *address);
    epoll_ctl(loop, EPOLL_CTL_ADD, file, &both);
}

static void ask(int file) {
    char request[96];
    int length = sprintf(request, "GET /%ld HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n\r\n", flying[file].target);
    if (send(file, request, length, MSG_NOSIGNAL) == length) flying[file].sent = now(CLOCK_MONOTONIC);
    else close(file);
}

static void take(int file) {
    static char answer[65536];
    flying[file].first = now(CLOCK_MONOTONIC);
    if (recv(file, answer, sizeof answer, 0) < 0) return;
    if (kept && keeps < MOST_CHECKS) kept[keeps++] = flying[file];
    close(file);
}

static int report(const char *name) {
    FILE *file = fopen(name, "w");
    double since_1970 = now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC);
    if (!file) return 1;
    fputc('[', file);
    for (struct check *one = kept; one < kept + keeps; one++)
        fprintf(file, "%s[%ld, %.6f, %.6f, %.4f, %.4f, %.4f, true]", one == kept ? "" : ",\n", one->target,
                one->due + since_1970, one->started + since_1970, (one->started - one->due) * 1000,
                (one->first - one->started) * 1000, (one->first - one->sent) * 1000);
    fputc(']', file);
    return fclose(file) != 0;
}

int main(int count, char **arguments) {
    double rate = count > 4 ? atof(arguments[1]) : 0, base = now(CLOCK_MONOTONIC) + 0.1;
    long targets = count > 4 ? atol(arguments[2]) : 0;
    int known = count - 4;
    if (rate <= 0 || targets < 1 || known > MOST_ADDRESSES) return 2;
    if (strcmp(arguments[3], "-")) kept = calloc(MOST_CHECKS, sizeof *kept);
    for (int i = 0; i < known; i++) {
        char *port = strchr(arguments[i + 4], ':');
        if (!port) return 2;
        *port = 0;
        addresses[i].sin_family = AF_INET;
        addresses[i].sin_port = htons(atoi(port + 1));
        if (inet_pton(AF_INET, arguments[i + 4], &addresses[i].sin_addr) != 1) return 2;
    }
    signal(SIGTERM, stop);
    int loop = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event due = {.events = EPOLLIN, .data.fd = timer}, events[64];
    epoll_ctl(loop, EPOLL_CTL_ADD, timer, &due);
    set(timer, base);
    for (long number = 0; !stopped;) {
        int ready = epoll_wait(loop, events, 64, 500);
        for (int i = 0; i < ready; i++) {
            int file = events[i].data.fd;
            if (file == timer) {
                long expired;
                if (read(timer, &expired, sizeof expired) < 0) continue;
                for (; base + number / rate <= now(CLOCK_MONOTONIC); number++) {
                    long target = number % targets;
                    begin(loop, &addresses[target % known], target, base + number / rate);
                }
                set(timer, base + number / rate);
            } else if (!flying[file].sent) {
                ask(file);
            } else if (events[i].events & EPOLLIN) {
                take(file);
            }
        }
    }
    return kept ? report(arguments[3]) : 0;
}
