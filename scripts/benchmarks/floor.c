/* What no program can go below: the system calls of a fresh HTTP check in a loop of C, without reading the answer.
 * floor RATE HOST:PORT…  checks the addresses in turn, RATE times a second on an even grid, until SIGTERM. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
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

static struct sockaddr_in addresses[MOST_ADDRESSES];
static char sent[MOST_FILES];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void set(int timer, double due) {
    struct itimerspec at = {.it_value = {(time_t)due, (long)((due - (time_t)due) * 1e9)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void begin(int loop, struct sockaddr_in *address) {
    int file = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (file < 0 || file >= MOST_FILES) exit(1);
    struct epoll_event both = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.fd = file};
    sent[file] = 0;
    connect(file, (struct sockaddr *)address, sizeof *address);
    epoll_ctl(loop, EPOLL_CTL_ADD, file, &both);
}

int main(int count, char **arguments) {
    static const char request[] = "GET /0 HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n\r\n";
    static char answer[65536];
    double rate = count > 2 ? atof(arguments[1]) : 0, base = now() + 0.1;
    int known = count - 2;
    if (rate <= 0 || known > MOST_ADDRESSES) return 2;
    for (int i = 0; i < known; i++) {
        char *port = strchr(arguments[i + 2], ':');
        if (!port) return 2;
        *port = 0;
        addresses[i].sin_family = AF_INET;
        addresses[i].sin_port = htons(atoi(port + 1));
        if (inet_pton(AF_INET, arguments[i + 2], &addresses[i].sin_addr) != 1) return 2;
    }
    int loop = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event due = {.events = EPOLLIN, .data.fd = timer}, events[64];
    epoll_ctl(loop, EPOLL_CTL_ADD, timer, &due);
    set(timer, base);
    for (long number = 0;;) {
        int ready = epoll_wait(loop, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            int file = events[i].data.fd;
            if (file == timer) {
                long expired;
                if (read(timer, &expired, sizeof expired) < 0) continue;
                for (; base + number / rate <= now(); number++) begin(loop, &addresses[number % known]);
                set(timer, base + number / rate);
            } else if (!sent[file]) {
                sent[file] = send(file, request, sizeof request - 1, MSG_NOSIGNAL) > 0;
                if (!sent[file]) close(file);
            } else if (events[i].events & EPOLLIN) {
                if (recv(file, answer, sizeof answer, 0) < 0) continue;
                close(file);
            }
        }
    }
}
