"""This module is the table of what a Linux guest reads at boot: patterns of paths, with the reason for each group.

It is general to distributions with systemd and GRUB: paths of Debian and Ubuntu (/usr/lib/x86_64-linux-gnu), and of Fedora and RHEL
(/usr/lib64). A path that is not there costs nothing, so names of all of them stand side by side. What is in the table was found in recorded
boots of several guests; what only one guest with one special service reads is not. Sizes are bytes.
"""

from collections.abc import Callable
from typing import Final

from imagefs.profile.walk import Aim, aim
from imagefs.units import KIB, MIB

Spans = tuple[tuple[int, int], ...]
"""(offset, length) in a file."""


def whole(size: int) -> Spans:
    """All of the file: boots read small files, programs and libraries of some MiB nearly to their ends, since the kernel reads around each fault."""
    return ((0, size),)


def program(size: int) -> Spans:
    """Programs and libraries: all up to 8 MiB; of larger ones, which are mostly Go and never needed as a whole, the first half."""
    return ((0, size if size <= 8 * MIB else size // 2),)


def nothing(_size: int) -> Spans:
    """Nothing but the way to it."""
    return ()


def first(length: int) -> Callable[[int], Spans]:
    """Return what takes the first `length` bytes: tables whose readers look into a few places."""
    return lambda _size: ((0, length),)


def hardware_database(size: int) -> Spans:
    """Of udev's compiled hardware database what leads to DMI, PCI, input and network entries, which every boot looks up; 36 % of it.

    It is a trie that is written in the same order each time: in recorded boots of systemd 252, 255 and 257 the same fractions of it were read.
    """
    return (0, 128 * KIB), *(
        (size * start // 1000, size * (stop - start) // 1000) for start, stop in ((293, 361), (515, 633), (784, 871), (913, 1000))
    )


_LIBRARY_DIRECTORIES: Final = ("/usr/lib/*-linux-gnu", "/usr/lib64")
LIBRARY_DIRECTORIES: Final = (*_LIBRARY_DIRECTORIES, "/usr/lib/*-linux-gnu/systemd", "/usr/lib64/systemd", "/usr/lib/systemd")
"""Where libraries are that programs need: the linker's directories, and where systemd has its own."""

# -- the boot loader ------------------------------------------------------------------------------

_GRUB_MODULES: Final = (
    "normal,terminal,crypto,extcmd,boot,bufio,gettext,gzio,part_gpt,part_msdos,ext2,xfs,btrfs,fshelp,datetime,minicmd,loadenv,disk,test,"
    "all_video,vbe,vga,video,video_fb,video_bochs,video_cirrus,bitmap,bitmap_scale,font,gfxterm,linux,linux16,relocator,mmap,verifiers,search,"
    "search_fs_file,search_fs_uuid,search_label,echo,sleep,configfile,priority_queue,regexp,serial,terminfo,net,gcry_crc,blscfg,increment,acpi,biosdisk"
)

LOADER: Final = tuple(
    aim(directory + pattern, take, content)
    for directory in ("/boot", "")  # the second for a filesystem that is mounted at /boot
    for pattern, take, content in (
        ("/grub/grub.cfg", whole, True),  # GRUB reads it first; it names the kernel
        ("/grub2/grub.cfg", whole, True),
        ("/loader/entries/*.conf", whole, True),  # Fedora's and RHEL's entries
        ("/{grub,grub2}/{grubenv,*.cfg}", whole, False),
        ("/{grub,grub2}/{i386-pc,x86_64-efi}/{" + _GRUB_MODULES + "}.mod", whole, False),  # what its modules and the usual grub.cfg load
        ("/{grub,grub2}/{i386-pc,x86_64-efi}/*.lst", whole, False),
        ("/{grub,grub2}/fonts/unicode.pf2", first(512 * KIB), False),  # its index and the Latin glyphs
        ("/vmlinuz-<newest>", nothing, False),  # if no configuration names a kernel
        ("/initrd.img-<newest>", nothing, False),
        ("/initramfs-<newest>.img", nothing, False),
        ("/initrd-<newest>", nothing, False),
    )
)

# -- systemd and what it starts -------------------------------------------------------------------

# Libraries that systemd loads when it needs them, so that no file names them; what programs need is found in their files.
_LOADED: Final = (
    "libkmod,libgcrypt,libgpg-error,liblz4,libzstd,liblzma,libseccomp,libpam,libaudit,libapparmor,libselinux,libcrypt,libip4tc,libacl,"
    "libblkid,libmount,libnss_*"
)

_PROGRAMS: Final = (
    "systemctl,systemd-tmpfiles,systemd-sysusers,systemd-detect-virt,systemd-machine-id-setup,udevadm,journalctl,kmod,dash,sh,mount,umount,"
    "mkdir,ln,ip,dbus-daemon,sync"
)

_SHELL: Final = (
    "bash,rm,cat,grep,sed,mawk,ls,cp,chmod,chown,uname,readlink,tr,hostname,id,touch,stty,getopt,expr,basename,dirname,date,mktemp,[,true,tee"
)
"""What scripts of services start."""

_DAEMONS: Final = "agetty,ip,fsck,fsck.ext4,blkid,modprobe,sysctl,init"

_SYSTEMD: Final = "systemd,systemd-executor,systemd-journald,systemd-udevd,systemd-remount-fs,systemd-shutdown,systemd-fsck"

# Modules that udev and systemd load in a virtual machine once the root filesystem is there; those of the disk itself come out of the initrd.
_MODULES: Final = (
    "fs/autofs/autofs4.ko*", "fs/fuse/fuse.ko*", "fs/configfs/configfs.ko*", "fs/efivarfs/efivarfs.ko*", "fs/binfmt_misc.ko*",
    "net/netfilter/x_tables.ko*", "net/ipv4/netfilter/ip_tables.ko*", "net/core/failover.ko*", "net/qrtr/qrtr.ko*",
    "drivers/net/{virtio_net,net_failover}.ko*", "drivers/char/hw_random/virtio-rng.ko*", "drivers/virtio/virtio_balloon.ko*",
    "drivers/firmware/qemu_fw_cfg.ko*", "drivers/firmware/efi/efi-pstore.ko*", "drivers/md/dm-mod.ko*", "drivers/block/loop.ko*",
    "drivers/input/serio/serio_raw.ko*", "drivers/input/evdev.ko*", "drivers/input/mouse/psmouse.ko*", "drivers/acpi/button.ko*",
    "drivers/cpufreq/{acpi-cpufreq,pcc-cpufreq,powernow-k8}.ko*", "virt/lib/irqbypass.ko*",
    "arch/x86/kvm/{kvm,kvm-amd,kvm-intel}.ko*", "drivers/crypto/ccp/ccp.ko*",
    "arch/x86/crypto/{aesni-intel,sha1-ssse3,sha256-ssse3,sha512-ssse3,ghash-clmulni-intel,crc32-pclmul,crct10dif-pclmul,polyval-clmulni}.ko*",
    "crypto/{cryptd,crypto_simd,sha512_generic}.ko*",
)  # fmt: skip

SYSTEM: Final = (
    # PID 1, its libraries and its configuration: the first thing after the initrd, which waits for each in turn.
    aim("/usr/lib/systemd/{" + _SYSTEMD + "}", program),
    aim("/sbin/init", program),
    aim("/usr/lib/systemd/libsystemd-*.so", program),
    *(aim(f"{directory}/systemd/libsystemd-*.so", program) for directory in _LIBRARY_DIRECTORIES),
    *(aim(f"{directory}/{{{_LOADED}}}.so*", program) for directory in _LIBRARY_DIRECTORIES),
    aim("/lib64/ld-linux-*.so*", program),
    aim(
        "/etc/{ld.so.cache,fstab,passwd,group,shadow,gshadow,nsswitch.conf,hosts,hostname,host.conf,gai.conf,locale.conf,locale.alias,vconsole.conf,environment}",
        whole,
    ),
    aim(
        "/etc/{machine-id,os-release,login.defs,services,issue,modules,sysctl.conf,crontab,rsyslog.conf,sudoers,securetty,adjtime,localtime,debian_version}",
        whole,
    ),
    aim("/etc/{default,security,modprobe.d,modules-load.d,sysctl.d,tmpfiles.d,udev,selinux,network,netplan,iproute2}/*", whole),
    aim("/etc/ssh/{sshd_config,ssh_host_*}", whole),
    aim("/etc/ssh/sshd_config.d/*", whole),
    aim("/etc/udev/rules.d/*", whole),
    aim("/etc/systemd/*.conf", whole),
    aim("/etc/systemd/network/*", whole),
    aim("/etc/systemd/*.conf.d/*", whole),
    aim("/usr/lib/os-release", whole),
    # Units: systemd reads the directories and most of the files; the enabled ones name the programs that start.
    aim("/usr/lib/systemd/system/*", whole),
    aim("/usr/lib/systemd/system/*.d/*", whole),
    aim("/usr/lib/systemd/{*.conf.d,network,system-preset}/*", whole),
    aim("/usr/lib/systemd/{system-generators,system-environment-generators}/*", program),
    aim("/usr/lib/systemd/system/{sysinit,basic,sockets,local-fs,multi-user,timers,graphical,getty,initrd}.target.wants/*", whole, content=True),
    aim("/etc/systemd/system/*", whole, content=True),
    aim("/etc/systemd/system/*.{wants,requires}/*", whole, content=True),
    aim("/etc/systemd/system-generators/*", program),
    # What the first services are and read.
    aim("/usr/bin/{" + _PROGRAMS + "}", program),
    aim("/usr/sbin/{" + _DAEMONS + "}", program),
    aim("/usr/lib/{modprobe.d,modules-load.d,sysctl.d,sysusers.d,tmpfiles.d,environment.d,binfmt.d}/*", whole),
    aim("/usr/lib/udev/rules.d/*", whole),
    aim("/usr/lib/udev/*_id", program),
    aim("/usr/lib/udev/hwdb.bin", hardware_database),
    aim("/etc/udev/hwdb.bin", hardware_database),
    aim("/usr/lib/locale/{C.utf8,C.UTF-8}/LC_*", whole),
    aim("/usr/lib/locale/{C.utf8,C.UTF-8}/LC_MESSAGES/*", whole),
    *(aim(f"{directory}/gconv/gconv-modules.cache", whole) for directory in _LIBRARY_DIRECTORIES),
    aim("/usr/share/dbus-1/*.conf", whole),
    aim("/usr/share/dbus-1/{system.d,system-services}/*", whole),
    aim("/usr/share/zoneinfo/Etc/UTC", whole),
    aim("/usr/lib/modules/<newest>/modules.{softdep,dep.bin,alias.bin,builtin.alias.bin,builtin.bin,devname}", whole),
    aim("/usr/lib/modules/<newest>/modules.symbols.bin", first(128 * KIB)),
    *(aim(f"/usr/lib/modules/<newest>/kernel/{path}", whole) for path in _MODULES),
    # Directories that are only looked into.
    aim("/var/{lib,log,cache,spool,tmp}/*", nothing),
    aim("/{dev,proc,sys,run,tmp,home,root,lost+found}/*", nothing),
)

# -- programs that many guests start through Python ------------------------------------------------

_PYTHON_MODULES: Final = (
    "abc,argparse,ast,base64,bisect,bz2,calendar,codecs,configparser,contextlib,copy,copyreg,csv,dataclasses,datetime,decimal,dis,enum,fnmatch,functools,"
    "genericpath,getopt,getpass,gettext,glob,gzip,hashlib,heapq,hmac,inspect,io,ipaddress,keyword,linecache,locale,lzma,mimetypes,ntpath,numbers,opcode,"
    "operator,optparse,os,pathlib,pickle,pkgutil,platform,posixpath,pprint,queue,quopri,random,re,reprlib,secrets,selectors,shlex,shutil,signal,site,socket,"
    "sre_*,ssl,stat,string,stringprep,struct,subprocess,sysconfig,tempfile,textwrap,threading,token,tokenize,traceback,types,typing,uuid,"
    "warnings,weakref,zipfile,zipimport,_collections_abc,_weakrefset,_sitebuiltins,_compression,_bootlocale,__future__,_strptime,"
    "netrc,cProfile,crypt,difflib"
)

_PYTHON_LIBRARIES: Final = (
    "_bisect,_blake2,_bz2,_contextvars,_csv,_datetime,_decimal,_hashlib,_heapq,_json,_lzma,_opcode,_pickle,_posixsubprocess,_queue,_random,_socket,"
    "_ssl,_struct,_uuid,_zoneinfo,array,binascii,fcntl,grp,math,mmap,select,termios,unicodedata,zlib"
)
_PYTHON_PACKAGES: Final = "importlib,collections,json,logging,email,http,urllib,re"

PYTHON: Final = (
    aim("/usr/bin/python3", program),
    aim("/usr/lib/python3.<newest>", nothing),
    *(aim(f"/usr/{lib}/python3.*/__pycache__/{{{_PYTHON_MODULES}}}.*pyc", whole) for lib in ("lib", "lib64")),
    *(aim(f"/usr/{lib}/python3.*/{{{_PYTHON_PACKAGES}}}/__pycache__/*.pyc", whole) for lib in ("lib", "lib64")),
    *(
        aim(f"/usr/{lib}/python3.*/encodings/__pycache__/{{__init__,aliases,utf_8,latin_1,ascii,idna,punycode}}.*pyc", whole)
        for lib in ("lib", "lib64")
    ),
    *(
        aim(f"/usr/{lib}/python3.*/{package}/__pycache__/*.pyc", whole)
        for lib in ("lib", "lib64")
        for package in ("importlib/metadata", "concurrent/futures")
    ),
    *(aim(f"/usr/{lib}/python3.*/lib-dynload/{{{_PYTHON_LIBRARIES}}}.*so", whole) for lib in ("lib", "lib64")),
)

_CLOUD_INIT_PACKAGES: Final = (
    "cloudinit,yaml,jinja2,markupsafe,configobj,requests,urllib3,idna,chardet,charset_normalizer,certifi,jsonschema,"
    "jsonschema_specifications,referencing,rpds,attr,attrs,pyrsistent,jsonpatch,jsonpointer,netifaces,netplan,six,rich,pkg_resources,"
    "configobj"
)

CLOUD_INIT: Final = (
    aim("/usr/bin/{cloud-init,cloud-id,growpart,ssh-keygen,lsblk,flock}", program),
    aim("/usr/lib/cloud-init/ds-identify", whole),
    aim("/usr/libexec/cloud-init/ds-identify", whole),
    aim("/usr/sbin/{sfdisk,resize2fs,growpart,dhclient,dhcpcd,blkid,netplan,useradd}", program),
    aim("/usr/bin/{partx,passwd,netplan}", program),
    aim("/etc/cloud/**/*", whole),
    aim("/etc/ssl/openssl.cnf", whole),
    aim("/etc/ssl/certs/ca-certificates.crt", whole),
    *(
        aim(f"/usr/{site}/{{{_CLOUD_INIT_PACKAGES}}}/**/__pycache__/*.pyc", whole)
        for site in ("lib/python3/dist-packages", "lib/python3.*/site-packages", "lib64/python3.*/site-packages")
    ),
    aim("/usr/lib/python3/dist-packages/oauthlib/__pycache__/*.pyc", whole),
    aim("/usr/lib/python3/dist-packages/oauthlib/oauth1/__pycache__/*.pyc", whole),
    aim("/usr/lib/python3/dist-packages/oauthlib/oauth1/rfc5849/__pycache__/*.pyc", whole),
    aim("/usr/lib/python3/dist-packages/serial/__pycache__/{__init__,serialutil,serialposix}.*pyc", whole),
    *(aim(f"/usr/{site}/yaml/*.so", whole) for site in ("lib/python3/dist-packages", "lib64/python3.*/site-packages")),
    aim("/usr/lib/python3/dist-packages/{" + _CLOUD_INIT_PACKAGES + "}.py", nothing),
    aim("/usr/lib/python3/dist-packages/__pycache__/{" + _CLOUD_INIT_PACKAGES + "}.*.pyc", whole),
    aim("/usr/lib/python3*/*-packages/cloudinit/config/schemas/*.json", whole),
)

_PYTHON_BUS: Final = (
    aim("/usr/lib/python3/dist-packages/_dbus_*.so", program),
    aim("/usr/lib/python3/dist-packages/dbus/__pycache__/*.pyc", whole),
    aim("/usr/lib/python3.*/xml/{sax,dom,etree,parsers}/__pycache__/*.pyc", whole),
)

SERVICES: Final[dict[str, tuple[Aim, ...]]] = {
    "apparmor": (
        aim("/usr/bin/{" + _SHELL + "}", program),
        aim("/usr/sbin/apparmor_parser", program),
        aim("/usr/lib/apparmor/*", whole),
        aim("/etc/apparmor{,.d}/*", whole),
        aim("/etc/apparmor.d/{abi,abstractions,tunables,local}/*", whole),
        aim("/usr/share/apparmor-features/features", whole),
    ),
    "chrony": (aim("/etc/chrony/*", whole), aim("/usr/bin/chronyc", program)),
    "cloud-init": (aim("/usr/bin/{" + _SHELL + "}", program), *PYTHON, *CLOUD_INIT),
    "networkd-dispatcher": _PYTHON_BUS,
    "unattended-upgrades": (
        *_PYTHON_BUS,
        aim("/usr/lib/python3/dist-packages/apt_pkg.*.so", program),
        aim("/usr/lib/python3/dist-packages/apt/__pycache__/*.pyc", whole),
    ),
    "networking": (
        aim("/usr/bin/{" + _SHELL + "}", program),
        aim("/etc/network/{if-up.d,if-pre-up.d}/*", whole),
        aim("/usr/sbin/{ifup,dhclient,dhclient-script}", program),
        aim("/etc/dhcp/**/*", whole),
    ),
    "rsyslog": (aim("/etc/rsyslog.d/*", whole), aim("/usr/lib/*-linux-gnu/rsyslog/{lmnet,imuxsock,imklog}.so", whole)),
}
"""By the beginning of an enabled unit's name: what it reads beside the programs that it names."""

# -- the firmware's partition ----------------------------------------------------------------------

ESP: Final = (
    # What the firmware starts without an entry of its own, and what that starts in turn. Short names, in capitals.
    aim("/EFI/BOOT/*.EFI", whole),
    aim("/EFI/*/{SHIM,GRUB}*.EFI", whole),
    aim("/EFI/*/GRUB.CFG", whole),
    aim("/EFI/*/BOOT*.CSV", whole),
)
