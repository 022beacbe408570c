/* file_system_shutdown DIRECTORY: the file system stops as in a power cut. What is not on its device is gone; from here
 * on all it says is EIO. The ioctl is XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN and FS_IOC_SHUTDOWN under one number; 2 is
 * "without flushing the journal". */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>

int main(int count, char **words) {
    uint32_t without_flush = 2;
    int directory = count == 2 ? open(words[1], O_RDONLY | O_DIRECTORY) : -1;
    if (directory < 0 || ioctl(directory, _IOR('X', 125, uint32_t), &without_flush) != 0) {
        perror(words[0]);
        return 1;
    }
    return 0;
}
