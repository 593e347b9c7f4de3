// Asking a lab's API server and name server, from inside the lab.
//
// Owns the few requests that tell whether a lab is ready. It is no client library: whoever tests
// something in a lab brings one.

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	requestTimeout = 5 * time.Second
	routeTimeout   = 200 * time.Millisecond
	answerBytesMax = 4 << 20
)

// api speaks to the API server as an administrator.
type api struct {
	client *http.Client
}

func newAPI(hub *space, a *authority, admin pair) (*api, error) {
	config, err := a.client(admin)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: config, DialContext: hub.dial}
	return &api{&http.Client{Transport: transport, Timeout: requestTimeout}}, nil
}

func (a *api) send(method, path string, body []byte) (int, []byte, error) {
	url := "https://" + apiAddress() + path
	request, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := a.client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, answerBytesMax))
	return response.StatusCode, text, err
}

// exists fails unless the API server has something at the path.
func (a *api) exists(path string) error {
	status, text, err := a.send(http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("`%s` answers %d: %.300s", path, status, text)
	}
	return nil
}

func (a *api) create(path, object string) error {
	status, text, err := a.send(http.MethodPost, path, []byte(object))
	if err != nil {
		return err
	}
	if status != http.StatusCreated && status != http.StatusConflict {
		return fmt.Errorf("creating below `%s` answers %d: %.300s", path, status, text)
	}
	return nil
}

// allReady fails unless that many nodes say that they are ready.
func (a *api) allReady(count int) error {
	status, text, err := a.send(http.MethodGet, "/api/v1/nodes", nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("listing nodes answers %d", status)
	}
	ready, reasons, err := readyNodes(text)
	if err != nil {
		return err
	}
	if ready < count {
		return fmt.Errorf("%d of %d nodes are ready %s", ready, count, reasons)
	}
	return nil
}

// readyNodes counts the ready nodes in a list, and says why the others are not.
func readyNodes(text []byte) (ready int, reasons []string, err error) {
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status, Message string }
			}
		}
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return 0, nil, err
	}
	for _, item := range list.Items {
		for _, condition := range item.Status.Conditions {
			switch {
			case condition.Type != "Ready":
			case condition.Status == "True":
				ready++
			default:
				reasons = append(reasons, item.Metadata.Name+": "+condition.Message)
			}
		}
	}
	return ready, reasons, nil
}

// answers fails unless the lab's name server knows the API server's Service.
func answers(hub *space) error {
	resolver := net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return hub.dial(ctx, network, net.JoinHostPort(hubAddress, "53"))
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	found, err := resolver.LookupHost(ctx, "kubernetes.default.svc."+clusterDomain+".")
	if err != nil {
		return err
	}
	if len(found) != 1 || found[0] != kubernetesService {
		return fmt.Errorf("the name server answers %v", found)
	}
	return nil
}

// routes fails unless the node's packet rules lead from the Service to the API server.
func routes(s *space) error {
	// Without rules, nobody answers.
	ctx, cancel := context.WithTimeout(context.Background(), routeTimeout)
	defer cancel()
	connection, err := s.dial(ctx, "tcp", net.JoinHostPort(kubernetesService, "443"))
	if err != nil {
		return err
	}
	return connection.Close()
}
