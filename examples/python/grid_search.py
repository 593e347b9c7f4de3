"""The best settings of a model: scikit-learn's own search, its fits on the cluster."""

from distributed import Client
from joblib import parallel_config
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

if __name__ == "__main__":
    samples, classes = make_classification(n_samples=600, n_features=12, n_informative=6, random_state=3)
    grid = {"C": [0.1, 1.0, 10.0], "gamma": [0.01, 0.1, 1.0]}
    with Client() as client:
        search = GridSearchCV(SVC(), grid, cv=3)
        with parallel_config(backend="dask"):
            search.fit(samples, classes)
        for settings, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
            print(f"C {settings['C']:5} gamma {settings['gamma']:5} score {score:.3f}")
        print(f"best: C {search.best_params_['C']}, gamma {search.best_params_['gamma']}, {search.best_score_:.3f}")
