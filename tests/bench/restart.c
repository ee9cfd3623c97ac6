/* An agent that says when it was started: `restart FIFO` writes the monotonic clock (ns) and waits to be killed. */

#include <fcntl.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t message[2] = {now.tv_sec * 1000000000LL + now.tv_nsec, getpid()};
    int fifo = open(words[count - 1], O_WRONLY);
    if (fifo < 0 || write(fifo, message, sizeof message) != sizeof message)
        return 1;
    close(fifo);
    for (;;)
        pause();
}
