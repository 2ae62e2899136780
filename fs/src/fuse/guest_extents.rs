//! Where the bytes of a guest's open file are. Of a file in very many pieces a window is known, which follows
//! whoever reads it; of nearly all it is the whole file.
//! What the reader says is taken as it is; that a window leads on is all that is checked here.

use super::guest_data::lie;
use super::handles::GuestFile;
use crate::errno::Failure;
use crate::guest::{Answer, Desk, Question};
use qmpfs_guestfs::Extent;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// Stretches that are asked for when a file is opened: nearly all files have fewer.
const FIRST: u32 = 4096;
/// Stretches that are asked for on the way.
const MORE: u32 = 1024;

/// The stretches of a file from one byte up to another; what is between them is a hole.
pub(super) struct Window {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) extents: Vec<Extent>,
}

/// The window that was asked for last.
pub(super) struct Extents(Mutex<Arc<Window>>);

/// What is asked before a file is opened.
pub(super) fn first(node: u64) -> Question {
    Question::Extents {
        node,
        offset: 0,
        limit: FIRST,
    }
}

impl Extents {
    /// From the answer to `first`, for a file of `size` bytes.
    pub(super) fn new(extents: Vec<Extent>, size: u64) -> Extents {
        Extents(Mutex::new(Arc::new(Window::new(0, size, extents, FIRST))))
    }
}

impl Window {
    fn new(from: u64, size: u64, extents: Vec<Extent>, limit: u32) -> Window {
        let to = match extents.last() {
            Some(last) if extents.len() >= limit as usize => {
                last.offset.saturating_add(last.length)
            }
            Some(_) | None => size,
        };
        Window { from, to, extents }
    }

    /// Where there is data or a hole next in a file of `size` bytes, if that is in the window; else where to look on.
    pub(super) fn sought(
        &self,
        size: u64,
        offset: u64,
        data: bool,
    ) -> ControlFlow<Option<u64>, u64> {
        let mut at = offset;
        let end = |it: &Extent| it.offset.saturating_add(it.length);
        let first = self.extents.partition_point(|it| end(it) <= offset);
        for extent in self.extents.get(first..).unwrap_or_default() {
            if data {
                return ControlFlow::Break(Some(extent.offset.max(at)).filter(|at| *at < size));
            }
            if extent.offset > at {
                return ControlFlow::Break(Some(at));
            }
            at = end(extent);
        }
        match (data, self.to < size) {
            (true, false) => ControlFlow::Break(None),
            (false, false) => ControlFlow::Break(Some(at.min(size))),
            (_, true) => ControlFlow::Continue(at.max(self.to)),
        }
    }
}

impl GuestFile {
    /// The window that a byte is in, if it is the one that is known.
    pub(super) fn known(&self, offset: u64) -> Option<Arc<Window>> {
        let window = self.extents.0.lock();
        let window = window.unwrap_or_else(PoisonError::into_inner);
        let is_in = (window.from..window.to).contains(&offset);
        is_in.then(|| Arc::clone(&window))
    }

    /// The window that a byte of the file is in; the reader is asked for one that begins there.
    pub(super) fn window(&self, desk: &mut Desk, offset: u64) -> Result<Arc<Window>, Failure> {
        if let Some(window) = self.known(offset) {
            return Ok(window);
        }
        let question = Question::Extents {
            node: self.node,
            offset,
            limit: MORE,
        };
        let Answer::Extents(extents) = desk.ask(&question)? else {
            return Err(lie());
        };
        let window = Arc::new(Window::new(offset, self.size, extents, MORE));
        if window.to <= offset {
            return Err(lie());
        }
        let mut known = self.extents.0.lock();
        *known.as_deref_mut().map_err(|_| lie())? = Arc::clone(&window);
        Ok(window)
    }
}

#[cfg(test)]
mod tests {
    use super::Window;
    use qmpfs_guestfs::{Extent, Place};
    use std::ops::ControlFlow::{Break, Continue};

    fn extent(offset: u64, length: u64) -> Extent {
        Extent {
            offset,
            length,
            place: Place::At(0),
        }
    }

    #[test]
    fn data_and_holes_of_a_file() {
        let extents = vec![extent(10, 10), extent(20, 10), extent(50, 20)];
        let window = Window::new(0, 60, extents, 4);
        let seek = |offset, data| window.sought(60, offset, data);
        assert_eq!(
            (seek(0, true), seek(0, false)),
            (Break(Some(10)), Break(Some(0)))
        );
        assert_eq!(
            (seek(12, true), seek(12, false)),
            (Break(Some(12)), Break(Some(30)))
        );
        assert_eq!(
            (seek(30, true), seek(30, false)),
            (Break(Some(50)), Break(Some(30)))
        );
        assert_eq!(
            (seek(55, true), seek(55, false)),
            (Break(Some(55)), Break(Some(60)))
        );
        let nothing = Window::new(0, 60, Vec::new(), 4);
        assert_eq!(nothing.sought(60, 5, true), Break(None));
        assert_eq!(nothing.sought(60, 5, false), Break(Some(5)));
    }

    /// Of a file of which more is to be asked for.
    #[test]
    fn a_window_says_where_to_look_on() {
        let window = Window::new(5, 90, vec![extent(0, 10), extent(20, 10)], 2);
        assert_eq!((window.from, window.to), (5, 30));
        assert_eq!(window.sought(90, 12, true), Break(Some(20)));
        assert_eq!(window.sought(90, 6, false), Break(Some(10)));
        assert_eq!(window.sought(90, 20, false), Continue(30));
    }
}
