package customizations

import (
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"testing"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/gitops-engine/pkg/health"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const scripts = "../../../../deploy/argocd/resource_customizations/kubernetes.dask.org"

var kinds = []string{"DaskAutoscaler", "DaskCluster", "DaskJob", "DaskWorkerGroup"}

// healthTests and actionTests have the form that Argo CD asks contributors for.
type healthTests struct {
	Tests []struct {
		InputPath    string              `json:"inputPath"`
		HealthStatus health.HealthStatus `json:"healthStatus"`
	} `json:"tests"`
}

type actionTests struct {
	DiscoveryTests []struct {
		InputPath string                    `json:"inputPath"`
		Result    []v1alpha1.ResourceAction `json:"result"`
	} `json:"discoveryTests"`
	ActionTests []struct {
		Action             string `json:"action"`
		InputPath          string `json:"inputPath"`
		ExpectedOutputPath string `json:"expectedOutputPath"`
	} `json:"actionTests"`
}

// What stands in `argocd-cm` runs without the libraries that touch files and processes.
var machine = lua.VM{UseOpenLibs: false}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = yaml.UnmarshalStrict(text, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func script(t *testing.T, parts ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func object(t *testing.T, parts ...string) *unstructured.Unstructured {
	t.Helper()
	object := map[string]any{}
	read(t, filepath.Join(parts...), &object)
	return &unstructured.Unstructured{Object: object}
}

func text(t *testing.T, object *unstructured.Unstructured) string {
	t.Helper()
	text, err := yaml.Marshal(object.Object)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestHealthIsAsStated(t *testing.T) {
	for _, kind := range kinds {
		folder := filepath.Join(scripts, kind)
		var tests healthTests
		read(t, filepath.Join(folder, "health_test.yaml"), &tests)
		inputs, err := filepath.Glob(filepath.Join(folder, "testdata", "*.yaml"))
		if err != nil || len(inputs) != len(tests.Tests) || len(inputs) == 0 {
			t.Errorf("%s: %d objects, %d tests, %v", kind, len(inputs), len(tests.Tests), err)
		}
		for _, test := range tests.Tests {
			t.Run(kind+"/"+filepath.Base(test.InputPath), func(t *testing.T) {
				input := object(t, folder, test.InputPath)
				if input.GetKind() != kind {
					t.Fatalf("the object is a %s", input.GetKind())
				}
				found, err := machine.ExecuteHealthLua(input, script(t, folder, "health.lua"))
				if err != nil {
					t.Fatal(err)
				}
				if *found != test.HealthStatus {
					t.Errorf("%+v instead of %+v", *found, test.HealthStatus)
				}
			})
		}
	}
}

func TestActionsAreAsStated(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(scripts, "*", "actions", "action_test.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("no actions", err)
	}
	for _, file := range files {
		folder := filepath.Dir(file)
		var tests actionTests
		read(t, file, &tests)
		for _, test := range tests.DiscoveryTests {
			found, err := machine.ExecuteResourceActionDiscovery(
				object(t, folder, test.InputPath), []string{script(t, folder, "discovery.lua")})
			if err != nil {
				t.Fatal(err)
			}
			sort.Slice(found, func(i, j int) bool { return found[i].Name < found[j].Name })
			if !reflect.DeepEqual(found, test.Result) {
				t.Errorf("%s: %+v instead of %+v", test.InputPath, found, test.Result)
			}
		}
		for _, test := range tests.ActionTests {
			found, err := machine.ExecuteResourceAction(object(t, folder, test.InputPath),
				script(t, folder, test.Action, "action.lua"), nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != 1 {
				t.Fatalf("%s of %s changes %d objects", test.Action, test.InputPath, len(found))
			}
			// As text, because Lua hands numbers back in another form.
			result := text(t, found[0].UnstructuredObj)
			expected := text(t, object(t, folder, test.ExpectedOutputPath))
			if result != expected {
				t.Errorf("%s of %s:\n%s\ninstead of\n%s", test.Action, test.InputPath, result, expected)
			}
		}
	}
}

// TestNoActionOnFinishedJobs, because there is nothing to suspend.
func TestNoActionOnFinishedJobs(t *testing.T) {
	folder := filepath.Join(scripts, "DaskJob")
	for _, name := range []string{"successful", "failed"} {
		found, err := machine.ExecuteResourceActionDiscovery(
			object(t, folder, "testdata", name+".yaml"),
			[]string{script(t, folder, "actions", "discovery.lua")})
		if err != nil || len(found) != 0 {
			t.Errorf("%s: %+v %v", name, found, err)
		}
	}
}
