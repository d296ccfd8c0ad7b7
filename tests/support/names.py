"""Names that resolve as a test wants: a library, loaded before all others, with a `getaddrinfo` of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

AVAILABLE = sys.platform == "linux" and shutil.which("cc") is not None

# A name like "700.ms.127.0.0.2.and.127.0.0.3.test": how long the look-up takes, and the addresses in their order.
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    look_up *real = (look_up *)dlsym(RTLD_NEXT, "getaddrinfo");
    size_t length = name ? strlen(name) : 0;
    if (length < 5 || strcmp(name + length - 5, ".test") != 0)
        return real(name, service, hints, found);
    char text[256];
    strncpy(text, name, sizeof text - 1);
    text[length - 5] = 0;
    char *rest = strstr(text, ".ms.");
    *rest = 0;
    usleep(1000 * atoi(text));
    for (char *address = rest + 4; address; address = rest) {
        if ((rest = strstr(address, ".and."))) {
            *rest = 0;
            rest += 5;
        }
        int error = real(address, service, hints, found);
        if (error)
            return error;
        while (*found)
            found = &(*found)->ai_next;
    }
    return 0;
}
"""


def name(*addresses: str, seconds: float = 0) -> str:
    """A name of these addresses, which takes so long to look up."""
    return f"{seconds * 1000:.0f}.ms.{'.and.'.join(addresses)}.test"


def library(directory: Path) -> Path:
    """The library, for ``LD_PRELOAD``."""
    source, built = directory / "names.c", directory / "names.so"
    source.write_text(_SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
    return built
