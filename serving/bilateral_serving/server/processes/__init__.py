"""The processes behind one server: tritonserver and the front door."""
