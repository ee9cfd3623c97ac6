// The client of datapath.py: loads one address, directly or through an HTTP CONNECT proxy, and prints figures as JSON.
//
//     load new|kept|bytes|hold|turns ADDRESS PORT PROXY-PORT|0 tls|plain CONNECTIONS SECONDS PATH [GATE-PORT]
//
// new:   each of CONNECTIONS threads connects, handshakes, gets PATH, reads to the end, again; latencies of each
// kept:  one thread, CONNECTIONS keep-alive connections in epoll, a request at a time on each
// bytes: each of CONNECTIONS threads reads the body of PATH over and over
// turns: as new, on one thread, in turn to PORT, to GATE-PORT and through the proxy: the medians of each way
// hold:  opens CONNECTIONS connections, gets PATH once on each, says "ready", holds them until its standard input ends
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in target;
static const char *address, *path;
static int port, proxy, tls, connections, closing;
static double seconds, started;
static SSL_CTX *context;

struct connection {
    int fd;
    SSL *ssl;
};

struct worker {
    pthread_t thread;
    long long done, bytes, errors;
    float *latencies;
    size_t measured;
};

#define MOST_MEASURED 200000

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int put(struct connection *c, const char *text, int size) {
    return c->ssl ? SSL_write(c->ssl, text, size) : (int)send(c->fd, text, (size_t)size, MSG_NOSIGNAL);
}

static int get(struct connection *c, char *buffer, int size) {
    return c->ssl ? SSL_read(c->ssl, buffer, size) : (int)recv(c->fd, buffer, (size_t)size, 0);
}

static void hang_up(struct connection *c) {
    if (c->ssl) {
        SSL_shutdown(c->ssl);
        SSL_free(c->ssl);
    }
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->ssl = NULL;
}

static int reach(struct connection *c) {
    char text[256];
    int one = 1;
    struct timeval patience = {.tv_sec = 10};
    c->ssl = NULL;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(c->fd, (struct sockaddr *)&target, sizeof target)) goto failed;
    if (proxy) {
        int size = snprintf(text, sizeof text, "CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n", address, port, address, port);
        if (send(c->fd, text, (size_t)size, MSG_NOSIGNAL) != size) goto failed;
        size = 0;
        do {
            ssize_t n = recv(c->fd, text + size, sizeof text - 1 - (size_t)size, 0);
            if (n <= 0) goto failed;
            size += (int)n;
            text[size] = 0;
        } while (!strstr(text, "\r\n\r\n"));
        if (strncmp(text + 8, " 200", 4)) goto failed;
    }
    if (tls) {
        c->ssl = SSL_new(context);
        SSL_set_tlsext_host_name(c->ssl, "origin.test");
        SSL_set_fd(c->ssl, c->fd);
        if (SSL_connect(c->ssl) != 1) goto failed;
    }
    return 1;
failed:
    hang_up(c);
    return 0;
}

static int request(char *text, size_t size) {
    return snprintf(text, size, "GET %s HTTP/1.1\r\nHost: origin.test\r\n%s\r\n", path, closing ? "Connection: close\r\n" : "");
}

// One whole response; its body's length, or -1.
static long long response(struct connection *c, char *buffer, int size) {
    int have = 0;
    char *end = NULL;
    while (!end) {
        int n = get(c, buffer + have, size - 1 - have);
        if (n <= 0) return -1;
        have += n;
        buffer[have] = 0;
        end = strstr(buffer, "\r\n\r\n");
    }
    char *length = strcasestr(buffer, "content-length:");
    if (!length || strncmp(buffer + 8, " 200", 4)) return -1;
    long long body = atoll(length + 15), left = body - (have - (end + 4 - buffer));
    while (left > 0) {
        int n = get(c, buffer, left < size ? (int)left : size);
        if (n <= 0) return -1;
        left -= n;
    }
    return body;
}

static void *fresh(void *argument) {
    struct worker *w = argument;
    char text[512], buffer[16384];
    int size = request(text, sizeof text);
    double began;
    while ((began = now()) < started + seconds) {
        struct connection c;
        if (!reach(&c)) {
            w->errors++;
            usleep(1000);
            continue;
        }
        if (put(&c, text, size) == size && response(&c, buffer, sizeof buffer) >= 0) {
            w->done++;
            if (w->measured < MOST_MEASURED) w->latencies[w->measured++] = (float)(now() - began);
        } else w->errors++;
        hang_up(&c);
    }
    return NULL;
}

static void *bulk(void *argument) {
    struct worker *w = argument;
    static const int size = 1 << 18;
    char text[512], *buffer = malloc((size_t)size);
    int length = request(text, sizeof text);
    struct connection c;
    if (!reach(&c)) {
        w->errors++;
        return NULL;
    }
    while (now() < started + seconds) {
        if (put(&c, text, length) != length) break;
        int n = 0;
        long long whole = -1, seen = 0;
        while (now() < started + seconds && (whole < 0 || seen < whole)) {
            n = get(&c, buffer, size - 1);
            if (n <= 0) break;
            if (whole < 0) {
                buffer[n] = 0;
                char *l = strcasestr(buffer, "content-length:"), *end = strstr(buffer, "\r\n\r\n");
                if (!l || !end) break;
                whole = atoll(l + 15) + (end + 4 - buffer);
            }
            seen += n;
            w->bytes += n;
        }
        if (n <= 0) {
            w->errors++;
            break;
        }
    }
    if (c.ssl) SSL_set_quiet_shutdown(c.ssl, 1);
    hang_up(&c);
    free(buffer);
    return NULL;
}

// Requests on kept connections: responses are small, so that one read has all of it nearly always.
static void kept(struct worker *w) {
    char text[512], buffer[16384];
    int length = request(text, sizeof text), poll = epoll_create1(0);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    double *sent = calloc((size_t)connections, sizeof *sent);
    for (int i = 0; i < connections; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        if (!reach(&all[i])) {
            w->errors++;
            continue;
        }
        epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &event);
    }
    started = now();
    for (int i = 0; i < connections; i++) {
        sent[i] = now();
        if (all[i].fd >= 0) put(&all[i], text, length);
    }
    while (now() < started + seconds) {
        struct epoll_event events[256];
        int n = epoll_wait(poll, events, 256, 1000);
        for (int k = 0; k < n; k++) {
            uint32_t i = events[k].data.u32;
            // With TLS 1.3 the first thing to come is a session ticket, which is no response yet.
            if (all[i].ssl) {
                char one;
                SSL_set_mode(all[i].ssl, SSL_MODE_AUTO_RETRY);
                if (SSL_peek(all[i].ssl, &one, 1) <= 0) {
                    w->errors++;
                    epoll_ctl(poll, EPOLL_CTL_DEL, all[i].fd, NULL);
                    continue;
                }
            }
            if (response(&all[i], buffer, sizeof buffer) < 0) {
                w->errors++;
                epoll_ctl(poll, EPOLL_CTL_DEL, all[i].fd, NULL);
                continue;
            }
            double t = now();
            w->done++;
            if (w->measured < MOST_MEASURED) w->latencies[w->measured++] = (float)(t - sent[i]);
            sent[i] = t;
            put(&all[i], text, length);
        }
    }
    seconds = now() - started;
    for (int i = 0; i < connections; i++) hang_up(&all[i]);
}

static void hold(struct worker *w) {
    char text[512], buffer[16384];
    int length = request(text, sizeof text);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    for (int i = 0; i < connections; i++)
        if (!reach(&all[i]) || put(&all[i], text, length) != length || response(&all[i], buffer, sizeof buffer) < 0) w->errors++;
    printf("ready\n");
    fflush(stdout);
    while (read(0, buffer, 1) > 0) continue;
    for (int i = 0; i < connections; i++) hang_up(&all[i]);
}

static int by_value(const void *a, const void *b);

// What slows the machine down for a while slows all ways down alike.
static void turns(int gate, double p50[3]) {
    int ways = proxy ? 3 : 2, to[3] = {port, gate, proxy};
    char text[512], buffer[16384];
    float *latencies[3];
    size_t measured[3] = {0, 0, 0};
    closing = 1;
    int length = request(text, sizeof text), through = proxy;
    for (int way = 0; way < ways; way++) latencies[way] = malloc(MOST_MEASURED * sizeof(float));
    while (now() < started + seconds)
        for (int way = 0; way < ways; way++) {
            struct connection c;
            double began = now();
            proxy = way == 2 ? through : 0;
            target.sin_port = htons((uint16_t)to[way]);
            if (!reach(&c)) continue;
            if (put(&c, text, length) == length && response(&c, buffer, sizeof buffer) >= 0 && measured[way] < MOST_MEASURED)
                latencies[way][measured[way]++] = (float)(now() - began);
            hang_up(&c);
        }
    for (int way = 0; way < ways; way++) {
        qsort(latencies[way], measured[way], sizeof(float), by_value);
        p50[way] = measured[way] ? latencies[way][measured[way] / 2] : 0;
    }
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    if (argc != 9 && argc != 10) return 2;
    const char *mode = argv[1];
    address = argv[2];
    port = atoi(argv[3]);
    proxy = atoi(argv[4]);
    tls = !strcmp(argv[5], "tls");
    connections = atoi(argv[6]);
    seconds = atof(argv[7]);
    path = argv[8];
    closing = !strcmp(mode, "new");
    target.sin_family = AF_INET;
    target.sin_port = htons((uint16_t)(proxy ? proxy : port));
    inet_pton(AF_INET, proxy ? "127.0.0.1" : address, &target.sin_addr);
    struct rlimit files = {65536, 65536};
    setrlimit(RLIMIT_NOFILE, &files);
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);

    if (!strcmp(mode, "turns")) {
        double p50[3] = {0, 0, 0};
        started = now();
        turns(argc == 10 ? atoi(argv[9]) : 0, p50);
        printf("{\"direct\": %.7f, \"gateway\": %.7f, \"squid\": %.7f}\n", p50[0], p50[1], p50[2]);
        return 0;
    }
    int threaded = closing || !strcmp(mode, "bytes"), n = threaded ? connections : 1;
    struct worker *workers = calloc((size_t)n, sizeof *workers);
    for (int i = 0; i < n; i++) workers[i].latencies = malloc(MOST_MEASURED * sizeof(float));
    started = now();
    if (threaded) {
        for (int i = 0; i < n; i++) pthread_create(&workers[i].thread, NULL, closing ? fresh : bulk, &workers[i]);
        for (int i = 0; i < n; i++) pthread_join(workers[i].thread, NULL);
        seconds = now() - started;
    } else if (!strcmp(mode, "kept")) kept(workers);
    else hold(workers);

    struct worker sum = {.latencies = malloc((size_t)n * MOST_MEASURED * sizeof(float))};
    for (int i = 0; i < n; i++) {
        sum.done += workers[i].done;
        sum.bytes += workers[i].bytes;
        sum.errors += workers[i].errors;
        memcpy(sum.latencies + sum.measured, workers[i].latencies, workers[i].measured * sizeof(float));
        sum.measured += workers[i].measured;
    }
    qsort(sum.latencies, sum.measured, sizeof(float), by_value);
    double p50 = sum.measured ? sum.latencies[sum.measured / 2] : 0, p99 = sum.measured ? sum.latencies[sum.measured * 99 / 100] : 0;
    printf("{\"done\": %lld, \"bytes\": %lld, \"errors\": %lld, \"seconds\": %.4f, \"p50\": %.7f, \"p99\": %.7f}\n", sum.done,
           sum.bytes, sum.errors, seconds, p50, p99);
    return 0;
}
