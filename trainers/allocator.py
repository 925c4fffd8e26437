"""The environment that a training process is started in."""

# A training step frees and takes again the same large blocks. By default glibc gives such blocks back to the kernel at
# once, and every step pays for fresh pages: these settings keep them. They are read before `main`, so whoever starts
# the process sets them. Measured on two cores: 5.9 s a step without, 4.1 s with them.
ALLOCATOR_ENVIRONMENT: dict[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(4 * 1024**3),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 1024**3),
    "MALLOC_TOP_PAD_": str(512 * 1024**2),
}
