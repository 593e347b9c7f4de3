//! Runs statements and operations as a worker does, on real files.

#[cfg(test)]
mod errors;
#[cfg(test)]
mod flights;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod outputs;
#[cfg(test)]
mod rendering;
