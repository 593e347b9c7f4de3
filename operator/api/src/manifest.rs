//! From a file to a plan.
//!
//! Owns the order of the steps: read within a bound, parse, find the one object and the `ConfigMaps`
//! beside it, read the types, check them, resolve the texts that stand elsewhere.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oxidask_diagnostic::nearest;

use crate::API_VERSION;
use crate::cluster::{DaskCluster, Runtime};
use crate::document::{self, Node};
use crate::error::ManifestError;
use crate::job::{DaskJob, Graph, KeyReference, Script, Tasks};
use crate::plan::{self, ClusterPlan, GraphSource, JobPlan, ScriptSource, ScriptWork, Work};
use crate::reader;
use crate::validate::{self, Site};

/// Bytes of a manifest, and of each text file that it names. Graph files have no such limit: they
/// are streamed.
pub const MANIFEST_BYTES_MAX: usize = 16 << 20;

/// Objects of one file, `ConfigMaps` included.
const DOCUMENTS_MAX: usize = 1000;

/// What a manifest describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A cluster and work for it.
    Job,
    /// A cluster.
    Cluster,
}

impl Kind {
    /// The name in the field `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Job => "DaskJob",
            Self::Cluster => "DaskCluster",
        }
    }
}

/// A file with one job or one cluster that passed every check.
#[derive(Debug)]
pub struct Manifest {
    origin: String,
    base_dir: PathBuf,
    root: Node,
    object: Object,
    /// The `data` of the `ConfigMaps` beside the object, by their name.
    config_maps: HashMap<String, HashMap<String, String>>,
}

#[derive(Debug)]
enum Object {
    Job(Box<DaskJob>),
    Cluster(Box<DaskCluster>),
}

impl Manifest {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let text = read_text(path)?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let base_dir = parent.unwrap_or_else(|| Path::new("."));
        Self::parse(&text, &path.display().to_string(), base_dir)
    }

    /// Checks a text; `origin` names it in messages, relative locations start at `base_dir`.
    pub fn parse(text: &str, origin: &str, base_dir: &Path) -> Result<Self, ManifestError> {
        let documents = document::parse(text, origin)?;
        let (root, config_maps) = only_object(documents, origin)?;
        let site = Site {
            origin,
            root: &root,
        };
        let object = match kind_of(site)? {
            Kind::Job => {
                let job: DaskJob = reader::read(&root, origin)?;
                validate::object_name(site, &job.metadata)?;
                validate::cluster(site, "spec.cluster.spec", &job.spec.cluster.spec)?;
                validate::work(site, &job.spec)?;
                Object::Job(Box::new(job))
            }
            Kind::Cluster => {
                let cluster: DaskCluster = reader::read(&root, origin)?;
                validate::object_name(site, &cluster.metadata)?;
                validate::cluster(site, "spec", &cluster.spec)?;
                Object::Cluster(Box::new(cluster))
            }
        };
        let origin = origin.to_owned();
        Ok(Self {
            origin,
            base_dir: base_dir.to_owned(),
            root,
            object,
            config_maps,
        })
    }

    /// What the file holds.
    pub fn kind(&self) -> Kind {
        match self.object {
            Object::Job(_) => Kind::Job,
            Object::Cluster(_) => Kind::Cluster,
        }
    }

    /// The folder in which relative locations start.
    pub fn base_dir(&self) -> &Path {
        &self.base_dir
    }

    /// The plan of a job, with the texts that stand in `ConfigMaps` and files.
    pub fn into_job(self) -> Result<JobPlan, ManifestError> {
        let Object::Job(job) = &self.object else {
            return Err(ManifestError::Kind {
                origin: self.origin,
                problem: "found a DaskCluster, expected a DaskJob".to_owned(),
                advice: Some("start it with `oxidask up`".to_owned()),
            });
        };
        let site = Site {
            origin: &self.origin,
            root: &self.root,
        };
        let work = self.work(site, job)?;
        let name = validate::object_name(site, &job.metadata)?;
        let spec = job.spec.cluster_spec();
        let mut cluster = plan::plan_cluster(&name, &spec, "spec.cluster.spec");
        for (is_given, path) in [
            (job.spec.suspend == Some(true), "spec.suspend"),
            (job.spec.schedule.is_some(), "spec.schedule"),
            (job.spec.keep_cluster.is_some(), "spec.keepCluster"),
            (takes_values_from_pods(job), "spec.script.env[].valueFrom"),
        ] {
            if is_given {
                cluster.ignored.insert(0, path.to_owned());
            }
        }
        Ok(JobPlan {
            cluster,
            work,
            active_deadline_seconds: job.spec.active_deadline_seconds,
            base_dir: self.base_dir,
        })
    }

    /// The plan of a cluster: a `DaskCluster`, or the cluster of a `DaskJob` without its work.
    pub fn into_cluster(self) -> Result<ClusterPlan, ManifestError> {
        let (metadata, spec, path) = match &self.object {
            Object::Job(job) => (&job.metadata, &job.spec.cluster.spec, "spec.cluster.spec"),
            Object::Cluster(cluster) => (&cluster.metadata, &cluster.spec, "spec"),
        };
        if spec.runtime() == Runtime::Dask {
            return Err(plan::refuse_python_runtime(&self.origin, path));
        }
        let site = Site {
            origin: &self.origin,
            root: &self.root,
        };
        let name = validate::object_name(site, metadata)?;
        Ok(plan::plan_cluster(&name, spec, path))
    }

    fn work(&self, site: Site<'_>, job: &DaskJob) -> Result<Work, ManifestError> {
        let spec = &job.spec;
        if let Some(sql) = &spec.sql {
            let reference = sql.config_map_key_ref.as_ref();
            let inline = (sql.statements.as_ref(), "spec.sql.statements");
            let (text, origin) = self.text(site, inline, reference, sql.file.as_ref())?;
            return Ok(Work::Sql { text, origin });
        }
        if let Some(graph) = &spec.graph {
            let outputs = graph.outputs.clone();
            return Ok(Work::Graph {
                tasks: self.tasks(site, graph)?,
                outputs,
            });
        }
        if let Some(script) = &spec.script {
            return Ok(Work::Script(self.script(site, script)?));
        }
        Ok(Work::Job)
    }

    fn script(&self, site: Site<'_>, script: &Script) -> Result<ScriptWork, ManifestError> {
        let reference = script.config_map_key_ref.as_ref();
        let inline = (script.source.as_ref(), "spec.script.source");
        // A file is read as well, so that one that cannot be is said before anything is started.
        let (text, origin) = self.text(site, inline, reference, script.file.as_ref())?;
        let source = match &script.file {
            Some(file) => ScriptSource::File(self.beside(file)),
            None => ScriptSource::Text { text, origin },
        };
        let environment = script.env.iter().filter_map(|variable| {
            let value = variable.value.as_ref()?;
            Some((variable.name.clone(), value.clone()))
        });
        Ok(ScriptWork {
            source,
            arguments: script.args.clone(),
            environment: environment.collect(),
            python: script.python.clone(),
        })
    }

    /// The path of a file that the manifest names, as short as it can be.
    fn beside(&self, file: &str) -> PathBuf {
        if self.base_dir == Path::new(".") {
            PathBuf::from(file)
        } else {
            self.base_dir.join(file)
        }
    }

    fn tasks(&self, site: Site<'_>, graph: &Graph) -> Result<GraphSource, ManifestError> {
        if let Some(file) = &graph.file {
            return Ok(GraphSource::File(self.beside(file)));
        }
        let inline = match &graph.tasks {
            Some(Tasks::List(tasks)) => {
                let path = "spec.graph.tasks";
                let indices = 0..tasks.len();
                let places =
                    indices.map(|index| site.origin_of(&format!("{path}[{index}]")).into());
                return Ok(GraphSource::Inline {
                    tasks: tasks.clone(),
                    places: places.collect(),
                    origin: site.origin_of(path),
                });
            }
            Some(Tasks::Text(text)) => Some(text),
            None => None,
        };
        let inline = (inline, "spec.graph.tasks");
        let (text, origin) = self.text(site, inline, graph.config_map_key_ref.as_ref(), None)?;
        Ok(GraphSource::Text { text, origin })
    }

    /// The text from the one source that is given, and where it stands.
    fn text(
        &self,
        site: Site<'_>,
        (inline, path): (Option<&String>, &str),
        reference: Option<&KeyReference>,
        file: Option<&String>,
    ) -> Result<(String, String), ManifestError> {
        if let Some(file) = file {
            let path = self.beside(file);
            return Ok((read_text(&path)?, path.display().to_string()));
        }
        if let Some(KeyReference { name, key }) = reference {
            let data = self.config_maps.get(name);
            if let Some(text) = data.and_then(|data| data.get(key)) {
                return Ok((text.clone(), format!("ConfigMap `{name}`, key `{key}`")));
            }
            let problem = match data {
                Some(_) => format!("names the key `{key}`, which `{name}` does not have"),
                None => format!(
                    "names the ConfigMap `{name}`, which a local run looks for in the same file"
                ),
            };
            let parent = path.rsplit_once('.').map_or(path, |(parent, _)| parent);
            return Err(site.value(&format!("{parent}.configMapKeyRef"), problem));
        }
        Ok((inline.cloned().unwrap_or_default(), site.origin_of(path)))
    }
}

fn read_text(path: &Path) -> Result<String, ManifestError> {
    let failed = |source| ManifestError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(ManifestError::Folder {
            path: path.to_owned(),
        });
    }
    let mut bytes = Vec::new();
    file.take(MANIFEST_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() > MANIFEST_BYTES_MAX {
        let bytes_max = MANIFEST_BYTES_MAX;
        return Err(ManifestError::TooLarge {
            path: path.to_owned(),
            bytes_max,
        });
    }
    String::from_utf8(bytes).map_err(|error| ManifestError::NotText {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })
}

/// Whether a variable of the job's program has its value from where only pods can take it.
fn takes_values_from_pods(job: &DaskJob) -> bool {
    let script = job.spec.script.as_ref();
    let mut variables = script.into_iter().flat_map(|script| &script.env);
    variables.any(|variable| variable.value_from.is_some())
}

type ConfigMaps = HashMap<String, HashMap<String, String>>;

/// The one object that is no `ConfigMap`, and the `ConfigMaps`.
fn only_object(documents: Vec<Node>, origin: &str) -> Result<(Node, ConfigMaps), ManifestError> {
    let refuse = |problem: String, advice: &str| ManifestError::Kind {
        origin: origin.to_owned(),
        problem,
        advice: Some(advice.to_owned()),
    };
    if documents.len() > DOCUMENTS_MAX {
        let problem = format!("the file holds more than {DOCUMENTS_MAX} objects");
        return Err(refuse(problem, "split the file"));
    }
    let mut config_maps = ConfigMaps::new();
    let mut objects = Vec::new();
    for node in documents {
        if node.get("kind").and_then(Node::text) == Some("ConfigMap") {
            let (name, data) = config_map(&node);
            config_maps.insert(name, data);
        } else {
            objects.push(node);
        }
    }
    if objects.len() > 1 {
        let found: Vec<String> = objects
            .iter()
            .map(|node| {
                let kind = node.get("kind").and_then(Node::text);
                format!(
                    "{} at line {}",
                    kind.unwrap_or_else(|| node.describe()),
                    node.place.line
                )
            })
            .collect();
        let count = objects.len();
        let problem = format!("the file holds {count} objects: {}", found.join(", "));
        return Err(refuse(
            problem,
            "keep one of them; only ConfigMaps may stand beside it",
        ));
    }
    match objects.pop() {
        Some(node) => Ok((node, config_maps)),
        None if config_maps.is_empty() => Err(refuse(
            "the file holds no object".to_owned(),
            "write a DaskJob or a DaskCluster",
        )),
        None => Err(refuse(
            "the file holds only ConfigMaps".to_owned(),
            "add the DaskJob that uses them",
        )),
    }
}

fn config_map(node: &Node) -> (String, HashMap<String, String>) {
    let name = node
        .at("metadata.name")
        .and_then(Node::text)
        .unwrap_or_default()
        .to_owned();
    let mut texts = HashMap::new();
    if let Some(data) = node.get("data")
        && let document::Content::Object(fields) = &data.content
    {
        for field in fields {
            if let Some(text) = field.value.text() {
                texts.insert(field.name.clone(), text.to_owned());
            }
        }
    }
    (name, texts)
}

fn kind_of(site: Site<'_>) -> Result<Kind, ManifestError> {
    let refuse = |problem: String, advice: Option<String>| ManifestError::Kind {
        origin: format!("{}:{}", site.origin, site.root.place),
        problem,
        advice,
    };
    let document::Content::Object(_) = &site.root.content else {
        let problem = format!("found {}, expected an object", site.root.describe());
        return Err(refuse(problem, None));
    };
    let field = |name: &str| match site.root.get(name) {
        None => Err(refuse(format!("the object has no `{name}`"), None)),
        Some(node) => node.text().ok_or_else(|| {
            refuse(
                format!("`{name}` is {}, expected a text", node.describe()),
                None,
            )
        }),
    };
    let api_version = field("apiVersion")?;
    let kind = field("kind")?;
    let known = [Kind::Job, Kind::Cluster]
        .into_iter()
        .find(|known| known.name() == kind);
    match known {
        Some(kind) if api_version == API_VERSION => Ok(kind),
        Some(_) => Err(refuse(
            format!("`apiVersion` is `{api_version}`, expected `{API_VERSION}`"),
            Some(format!("write `apiVersion: {API_VERSION}`")),
        )),
        None => {
            let problem = format!("`kind` is `{kind}`, expected `DaskJob` or `DaskCluster`");
            let names = [Kind::Job.name(), Kind::Cluster.name()];
            let singular = kind.trim_end_matches('s');
            let plural = names
                .into_iter()
                .find(|name| name.eq_ignore_ascii_case(singular));
            let meant = plural.or_else(|| nearest(kind, names));
            let advice = match (kind, meant) {
                ("DaskWorkerGroup" | "DaskAutoscaler", _) => Some(format!(
                    "a {kind} belongs to a cluster in Kubernetes; locally, use the DaskCluster's \
                     `workerGroups` and `autoscale`"
                )),
                (_, Some(name)) => Some(format!("did you mean `kind: {name}`?")),
                _ => None,
            };
            Err(refuse(problem, advice))
        }
    }
}
