"""The real federation: servers, devices, keys, runs.

What other folders take:
    doctor.device: The checks of a device that has a join file.
    doctor.server: The checks of a server's folder.
    enroll.JoinFile: What fedcar enroll wrote for a device.
    enroll.enroll: Let a device in by its public key and write what it joins with: address, authority, fingerprints;
        no secret.
    folder.ServerFolder: SERVER/server.json, ca.pem, nodes.json, runs/; secret, keys and the SuperLink's own files
        beside them.
    join.DeviceOptions: What a device takes part with: its key, its questions, and the folder of what it remembers
        from round to round.
    join.join: Check, prepare, then run the SuperNode and the worker that answers for it; the SuperNode is restarted
        at death.
    keys.keygen: FOLDER/NAME.key, readable by its owner alone, and FOLDER/NAME.pub; never writes over a key.
    link.START_SECONDS: how long a SuperLink may take until it answers.
    link.link_of: The connection; it is not opened yet.
    link.node_states: Which devices are online and which offline, by number.
    link.register: Let the device with this key in; its number.
    options.RunOptions: What `fedcar run` was asked for, kept in RUN/run.json so that `fedcar resume` needs nothing
        but its name.
    processes.Child: A process with its log file, restarted on demand; it is killed when the thread that started it
        ends.
    processes.fedcar_command: This fedcar as a command of its own.
    processes.free_port: A port on loopback that nothing listens on now.
    run.is_full: Whether this error is a full disk's: safetensors says so in words, and a SuperLink there only stops
        answering.
    run.start: Train over the devices of a served folder; goes on with a run where it stands.
    run_noised.under_epsilon: The options of a run with this target; FedcarError for what makes no sense, before any
        device is asked.
    runs.check_serving: Refuse a run without a server.
    runs.new_run: A folder for a new run, named by the time.
    runs.one_run: Refuse a second run while one is on.
    runs.status: Whether the server runs, its devices, its runs; a server that runs is asked for `node_states`.
    server.front_certificate: Certificate and key of the TLS front: the folder's own for `host`, or the given ones
        (and their authority).
    server.prepare_server: Make the folder with authority, certificates and secret where they are missing; the
        settings of the server.
    server.serve: Run SuperLink and TLS front, and restart the SuperLink when it dies; returns when `until` says so.
"""
