"""``wae accelerate``'s parts; :mod:`wae.experiments.accelerate` runs them one after the other.

::

    settings     what a user asks for
    data         the images, in the size of a network
    task         the trained network and its images, opened
    folder       the files that come of it, and the record of what was found
    networks     WAE around the network, to begin with; the teacher
    plans        what a training does
    training     trainings that go on where they were stopped
    trials       what is chosen by short trainings
    target       the size and the light body that are fast enough
    rivals       what else the same time could buy
    measuring    accuracy and time
    deployment   all networks in their fastest forms; the ONNX file
    report       report.md, report.html
"""
