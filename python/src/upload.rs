//! Buffers of Python on their way into the cluster.

use bytes::Bytes;
use oxidask_client::futures::PutSource;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use crate::callback::attached;
use crate::memory;

/// Buffers that are read one after the other.
pub(crate) struct Upload {
    /// Views of bytes, and where each ends.
    views: Vec<(Py<PyAny>, u64)>,
}

impl Upload {
    pub(crate) fn new(buffers: &[Bound<'_, PyAny>]) -> PyResult<Self> {
        let mut views = Vec::with_capacity(buffers.len());
        let mut end = 0;
        for buffer in buffers {
            let view = PyMemoryView::from(buffer)?;
            let view = view.call_method1("cast", ("B",))?;
            end += view.len()? as u64;
            views.push((view.unbind(), end));
        }
        Ok(Self { views })
    }

    pub(crate) fn len(&self) -> u64 {
        self.views.last().map_or(0, |(_, end)| *end)
    }

    fn copy(&self, py: Python<'_>, offset: u64, bytes: usize) -> PyResult<Vec<u8>> {
        let mut copy = vec![0; bytes];
        let mut done = 0;
        let first = self.views.partition_point(|(_, end)| *end <= offset);
        let mut at = offset;
        for (view, end) in &self.views[first..] {
            let view = view.bind(py);
            let length = view.len()?;
            let start = length - usize::try_from(end - at)?;
            let taken = (length - start).min(bytes - done);
            if taken > 0 {
                let part = memory::part(view, start, taken)?;
                PyBuffer::<u8>::get(&part)?.copy_to_slice(py, &mut copy[done..done + taken])?;
            }
            done += taken;
            at += taken as u64;
            if done == bytes {
                break;
            }
        }
        copy.truncate(done);
        Ok(copy)
    }
}

impl PutSource for Upload {
    fn read(&self, offset: u64, bytes: usize) -> Result<Bytes, String> {
        let copied = attached(|py| {
            self.copy(py, offset, bytes)
                .map_err(|error| error.to_string())
        });
        match copied {
            Some(copied) => Ok(copied?.into()),
            None => Err("the interpreter ends".to_owned()),
        }
    }
}
