//! The kernel's requests, one after the other: whose each is, a guest's or our own, and what would write.
//! Each is answered by another file of this room.

use super::{Qmpfs, files, guest, guest_list, names, negotiate, open, origins, seek, verbs};
use crate::tree;
use fuser::{
    FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

impl Filesystem for Qmpfs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate::negotiate(self.shared.passthrough.as_ref(), config);
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(on_end) = self.on_end.take() {
            on_end();
        }
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.run("lookup", |shared| {
            match guest::place(shared, parent) {
                Some(Ok(place)) => return guest::lookup(shared, place, name, reply),
                Some(Err(errno)) => return reply.error(errno),
                None => {}
            }
            names::lookup(shared, parent, name, reply)
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, lookups: u64) {
        self.run("forget", |shared| {
            if guest::forget(shared, ino, lookups) {
                return;
            }
            let model = shared.engine.model();
            shared
                .ids
                .forget(ino.0, lookups, |key| tree::exists(&model, key));
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.run("getattr", |shared| match guest::place(shared, ino) {
            Some(Ok(place)) => guest::getattr(shared, place, reply),
            Some(Err(errno)) => reply.error(errno),
            None => names::getattr(shared, ino, reply),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.run("readlink", |shared| match guest::place(shared, ino) {
            Some(Ok(place)) => guest::readlink(shared, place, reply),
            Some(Err(errno)) => reply.error(errno),
            None => names::readlink(shared, ino, reply),
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.run("opendir", |shared| match guest::place(shared, ino) {
            Some(Ok(place)) => guest_list::opendir(shared, place, reply),
            Some(Err(errno)) => reply.error(errno),
            None => names::opendir(shared, req.pid(), ino, reply),
        });
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.run("readdir", |shared| {
            names::readdir(shared, fh, offset, reply)
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.run("readdirplus", |shared| {
            names::readdirplus(shared, req.unique(), fh, offset, reply)
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.run("releasedir", |shared| {
            shared.handles.remove(fh);
            reply.ok();
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        self.run("open", |shared| {
            match guest::place(shared, ino) {
                Some(Ok(_)) if writes => return reply.error(fuser::Errno::EROFS),
                Some(Ok(place)) => return guest::open(shared, req.pid(), place, reply),
                Some(Err(errno)) => return reply.error(errno),
                None => {}
            }
            if writes {
                open::open_control(shared, ino, reply);
            } else {
                open::open(shared, req.pid(), ino, reply);
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run("read", |shared| {
            files::read(shared, req.unique(), fh, flags, (offset, size), reply)
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.run("lseek", |shared| {
            seek::lseek(shared, fh, offset, whence, reply)
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.run("ioctl", |shared| {
            origins::ioctl(shared, fh, cmd, in_data, reply);
        });
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.run("release", |shared| {
            files::release(shared, fh);
            reply.ok();
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.run("mkdir", |shared| {
            if guest::place(shared, parent).is_some() {
                return reply.error(fuser::Errno::EROFS);
            }
            verbs::mkdir(shared, req.pid(), parent, name, reply)
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run("rmdir", |shared| {
            if let Some(errno) = guest::no_write(shared, req.pid(), parent) {
                return reply.error(errno);
            }
            verbs::rmdir(shared, req.pid(), parent, name, reply)
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run("unlink", |shared| {
            if let Some(errno) = guest::no_write(shared, req.pid(), parent) {
                return reply.error(errno);
            }
            verbs::unlink(shared, req.pid(), parent, name, reply);
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.run("statfs", |shared| names::statfs(shared, reply));
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    // Answered at once: the kernel holds the directory's lock meanwhile.
    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    // Everything below would write: it has no meaning here for anybody, root included, but for the
    // lines that control files take.

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.run("setattr", |shared| {
            // what open(2) with O_TRUNC asks for, as `echo pause > ctl` does
            let truncates = size == Some(0) && mode.is_none() && uid.is_none() && gid.is_none();
            if truncates && verbs::may_control(shared, ino) {
                names::getattr(shared, ino, reply);
            } else {
                reply.error(verbs::no_write(shared, ino));
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.run("write", |shared| {
            verbs::write(shared, req.pid(), fh, data, reply)
        });
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::EROFS);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(fuser::Errno::EPERM);
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(fuser::Errno::EPERM);
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _link_name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(fuser::Errno::EPERM);
    }

    fn link(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(fuser::Errno::EPERM);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::EPERM);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(verbs::no_write(&self.shared, ino));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(verbs::no_write(&self.shared, ino));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.run("getxattr", |shared| match guest::place(shared, ino) {
            Some(Ok(place)) => {
                let name = name.as_bytes().to_vec();
                guest::xattr(&place, guest::Wanted::Value(name), size, reply);
            }
            Some(Err(errno)) => reply.error(errno),
            None => names::getxattr(ino, name, size, reply),
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.run("listxattr", |shared| match guest::place(shared, ino) {
            Some(Ok(place)) => guest::xattr(&place, guest::Wanted::Names, size, reply),
            Some(Err(errno)) => reply.error(errno),
            None => reply.error(fuser::Errno::ENOTSUP),
        });
    }
}
