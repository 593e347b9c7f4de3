//! Memory that Python owns and a result arrives in.
//!
//! Owns where it comes from: large results lie in pages of their own, which the system hands out
//! zeroed and takes back at once; small ones in a `bytearray`. Invariant: a result begins at a
//! multiple of [`ALIGNMENT`], so the buffers in it lie as they did where they were made.

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyByteArray, PyMemoryView, PySlice};

/// Of the buffers in a payload of Python.
const ALIGNMENT: usize = 64;

/// Results from here on have pages of their own.
const PAGES_BYTES_MIN: usize = 1 << 20;

/// Shorter ones have no buffer that could lie badly.
const ALIGNED_BYTES_MIN: usize = 256;

/// A whole result.
pub(crate) fn filled<'py>(py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if data.len() < ALIGNED_BYTES_MIN {
        return Ok(PyMemoryView::from(PyByteArray::new(py, data).as_any())?.into_any());
    }
    if data.len() < PAGES_BYTES_MIN {
        let mut start = 0;
        let array = PyByteArray::new_with(py, data.len() + ALIGNMENT - 1, |bytes| {
            start = bytes.as_ptr().addr().wrapping_neg() % ALIGNMENT;
            bytes[start..start + data.len()].copy_from_slice(data);
            Ok(())
        })?;
        return part(
            PyMemoryView::from(array.as_any())?.as_any(),
            start,
            data.len(),
        );
    }
    let memory = reserved(py, data.len())?;
    fill(&memory, 0, data)?;
    Ok(memory)
}

/// Room for a result that arrives in parts.
pub(crate) fn reserved(py: Python<'_>, bytes: usize) -> PyResult<Bound<'_, PyAny>> {
    if bytes < PAGES_BYTES_MIN {
        return filled(py, &vec![0; bytes]);
    }
    let module = py.import("mmap")?;
    let private: i32 = module.getattr("MAP_PRIVATE")?.extract()?;
    let anonymous: i32 = module.getattr("MAP_ANONYMOUS")?.extract()?;
    let flags = [("flags", private | anonymous)].into_py_dict(py)?;
    let pages = module.getattr("mmap")?.call((-1, bytes), Some(&flags))?;
    // Fewer faults while it is filled. Where the system has no such pages, that is all the same.
    let _ = module
        .getattr("MADV_HUGEPAGE")
        .and_then(|advice| pages.call_method1("madvise", (advice,)));
    Ok(PyMemoryView::from(&pages)?.into_any())
}

/// Writes into it from there on.
pub(crate) fn fill(memory: &Bound<'_, PyAny>, start: usize, data: &[u8]) -> PyResult<()> {
    let place = part(memory, start, data.len())?;
    PyBuffer::<u8>::get(&place)?.copy_from_slice(memory.py(), data)
}

/// A part of a view of bytes.
pub(crate) fn part<'py>(
    view: &Bound<'py, PyAny>,
    start: usize,
    bytes: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let position = |at: usize| isize::try_from(at);
    let slice = PySlice::new(view.py(), position(start)?, position(start + bytes)?, 1);
    view.get_item(slice)
}
