-- Health of a DaskJob: healthy once its work is done. A job of dask-kubernetes has no conditions, so
-- `jobStatus` decides.
local function condition(kind)
  for _, entry in ipairs(obj.status.conditions or {}) do
    if entry.type == kind then
      return entry
    end
  end
end

local function is_true(kind)
  local entry = condition(kind)
  return entry ~= nil and entry.status == "True"
end

local function message_of(kind, otherwise)
  local entry = condition(kind)
  if entry ~= nil and entry.message ~= nil and entry.message ~= "" then
    return entry.message
  end
  return otherwise
end

if obj.status == nil then
  return {status = "Progressing", message = "waiting for the operator"}
end
local state = obj.status.jobStatus
if state == "Successful" then
  return {status = "Healthy", message = message_of("Complete", "the work is done")}
end
if state == "Failed" then
  return {status = "Degraded", message = message_of("Failed", "the work failed")}
end
if obj.status.observedGeneration ~= nil and obj.metadata.generation ~= nil
  and obj.status.observedGeneration < obj.metadata.generation then
  return {status = "Progressing", message = "waiting for the operator to see the change"}
end
if is_true("Stalled") then
  return {status = "Degraded", message = message_of("Stalled", "only a change of the spec helps")}
end
if obj.spec ~= nil and obj.spec.suspend == true then
  return {status = "Suspended", message = "the job is suspended"}
end
-- A schedule is a template of jobs: it never ends, and a run that failed is another object.
if obj.spec ~= nil and obj.spec.schedule ~= nil then
  return {status = "Healthy", message = message_of("Reconciling", "jobs are made by schedule")}
end
return {status = "Progressing", message = message_of("Reconciling", state or "the job has not begun")}
