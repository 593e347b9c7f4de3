//! Who this process is, and whom it trusts.

use std::path::PathBuf;

use oxidask_diagnostic::Diagnostic;
use pyo3::prelude::*;

use crate::callback::exception;

/// Certificate, key and trusted authorities, checked to fit together.
#[pyclass(frozen, module = "oxidask._oxidask")]
pub(crate) struct Credentials {
    pub(crate) inner: oxidask_comm::Credentials,
}

#[pymethods]
impl Credentials {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of a folder. What is renewed there later is used for
    /// connections that are made then.
    #[staticmethod]
    #[allow(
        clippy::needless_pass_by_value,
        reason = "Python's path becomes one of its own"
    )]
    fn from_dir(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let read = py.detach(|| oxidask_comm::Credentials::from_dir(&path));
        let inner = read.map_err(|error| exception(py, &Diagnostic::from_error(&error)))?;
        Ok(Self { inner })
    }

    /// Takes the content of the three files.
    #[staticmethod]
    fn from_pem(py: Python<'_>, ca: &str, certificate: &str, key: &str) -> PyResult<Self> {
        let read = oxidask_comm::Credentials::from_pem(ca, certificate, key);
        let inner = read.map_err(|error| exception(py, &Diagnostic::from_error(&error)))?;
        Ok(Self { inner })
    }

    /// Who the certificate speaks for.
    #[getter]
    fn identity(&self) -> String {
        self.inner.identity().to_string()
    }

    fn __repr__(&self) -> String {
        format!("Credentials({})", self.inner.identity())
    }
}
