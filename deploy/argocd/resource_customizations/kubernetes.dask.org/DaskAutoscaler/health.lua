-- Health of a DaskAutoscaler. A silent scheduler is no fault of the autoscaler: it waits.
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
if obj.status.observedGeneration ~= nil and obj.metadata.generation ~= nil
  and obj.status.observedGeneration < obj.metadata.generation then
  return {status = "Progressing", message = "waiting for the operator to see the change"}
end
if is_true("Stalled") then
  return {status = "Degraded", message = message_of("Stalled", "only a change of the spec helps")}
end
if is_true("Ready") or obj.status.conditions == nil then
  return {status = "Healthy", message = message_of("Ready", "")}
end
return {status = "Progressing", message = message_of("Ready", "the autoscaler does not decide yet")}
